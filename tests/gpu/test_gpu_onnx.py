"""ONNX Runtime's CUDA provider: the answers are the CPU's, a GPU that is asked for is really used, and is measured."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from gpu_machine import marks

from cluster.errors import EngineFailed
from converters.build import convert, silent
from converters.candidate import Options
from converters.objective import parse_objective
from converters.onnx.providers import CUDA
from converters.optimize import optimize
from converters.runtime import can_use_gpu, open_runtime
from onnx_models import fixed_artifact, mlp_artifact, mlp_model, sample, text_artifact, two_input_artifact

pytestmark = marks(onnxruntime_gpu=True)

# On GPUs since Ampere FP32 products are computed in TF32, with 11 significant bits.
NEAR = {"rtol": 1e-2, "atol": 1e-2}


@pytest.mark.parametrize("make", [mlp_artifact, two_input_artifact, fixed_artifact], ids=lambda make: make.__name__)
def test_a_gpu_answers_as_the_cpu_does(make, tmp_path):
    artifact = make(tmp_path / "a")
    on_gpu = open_runtime(artifact, accelerator="gpu")
    assert on_gpu.provider == CUDA
    for a, b in zip(open_runtime(artifact).run(sample(artifact)), on_gpu.run(sample(artifact)), strict=True):
        np.testing.assert_allclose(b, a, **NEAR)


def test_auto_takes_the_gpu_and_the_models_nodes_are_on_it(tmp_path):
    artifact = mlp_artifact(tmp_path / "a")
    assert can_use_gpu("onnx")
    placed = open_runtime(artifact, accelerator="auto").placed
    assert set(placed) == {CUDA} and placed[CUDA] >= 2


def test_a_model_that_cuda_cannot_compute_is_refused_instead_of_served_by_the_cpu(tmp_path):
    artifact = text_artifact(tmp_path / "a")
    with pytest.raises(EngineFailed, match="takes none of the model's nodes"):
        open_runtime(artifact, accelerator="gpu")
    assert open_runtime(artifact, accelerator="auto").run(sample(artifact))


def test_a_gpu_that_is_hidden_is_an_error_and_with_auto_the_cpu(tmp_path):
    """In a process of its own: what a process sees of GPUs is decided once."""
    artifact = mlp_artifact(tmp_path / "a")
    script = f"""
from pathlib import Path
from cluster.artifact import Artifact
from cluster.errors import EngineFailed
from converters.runtime import open_runtime
artifact = Artifact.read(Path({str(artifact.path)!r}))
print(open_runtime(artifact, accelerator="auto").provider)
try:
    open_runtime(artifact, accelerator="gpu")
except EngineFailed as error:
    print("refused:", error.message)
"""
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, timeout=120)
    assert "CPUExecutionProvider" in done.stdout and "refused:" in done.stdout, done.stdout + done.stderr


def test_a_conversion_is_proved_and_measured_on_the_gpu(tmp_path):
    onnx.save(mlp_model(hidden=256), tmp_path / "m.onnx")
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).standard_normal((32, 4)).astype("f4"))
    loose = {"rel": 1e-2, "abs": 1e-2}
    options = Options(sample=tmp_path / "rows.npz", device="gpu", max_rows=8, profile_s=0.5, tolerance=loose)
    for artifact in convert(tmp_path / "m.onnx", tmp_path / "out", ("onnx", "fp16"), options):
        assert artifact.parity()["executed"] is True and artifact.parity()["passed"] is True
        assert artifact.cost_curve("gpu").rows == (1, 2, 4, 8)
        assert "gpu_model" in artifact.profile()["devices"]["gpu"]
        assert artifact.profile()["devices"]["gpu"]["gpu_bytes"] > 0


def test_the_best_form_is_chosen_by_what_it_costs_on_the_gpu(tmp_path):
    onnx.save(mlp_model(hidden=256), tmp_path / "m.onnx")
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).standard_normal((32, 4)).astype("f4"))
    loose = {"rel": 1e-2, "abs": 1e-2}
    options = Options(sample=tmp_path / "rows.npz", device="gpu", max_rows=8, profile_s=0.5, tolerance=loose)
    goal = parse_objective("p99<50ms")
    found = optimize(tmp_path / "m.onnx", tmp_path / "best", goal, options, silent, ("onnx", "fp16"), (1,))
    assert not found.failed and {result.configuration.target for result in found.results} == {"onnx", "fp16"}
    assert found.serving["accelerator"] == "gpu" and found.artifact.manifest.extra["serving"] == found.serving
    (profile,) = found.artifact.profile()["devices"].items()
    assert profile[0] == "gpu" and profile[1]["gpu_model"]
    assert open_runtime(found.artifact, accelerator="gpu").provider == CUDA
