"""TensorRT engines on the GPU they are built for: proved by running them, and measured there.

With a GPU, `tests/contract/test_contract_runtime.py` runs over real engines too.
"""

from importlib.util import find_spec

import numpy as np
import onnx
import pytest

from cluster.artifact import Artifact
from cluster.derived import DerivedFiles
from cluster.errors import EngineFailed, InvalidRequest
from converters.build import convert
from converters.candidate import Options
from converters.runtime import open_runtime
from converters.tensorrt_on_load import LEAST_CAPABILITY, key_of
from converters.tensorrt_runtime import TorchDevice, module_of
from onnx_models import mlp_model


def gpu_is_missing() -> str:
    """Why there is no GPU to test on; "" if there is one."""
    if find_spec("torch") is None:
        return "torch, which finds CUDA devices, is not installed"
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device"


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(gpu_is_missing()), reason=gpu_is_missing() or "there is a GPU")]


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def family(request):
    pytest.importorskip(module_of(request.param))
    return request.param


@pytest.fixture
def targets(family):
    """The family's targets that this GPU has the precision for."""
    capability = tuple(int(part) for part in TorchDevice().gpu.capability.split("."))
    narrow = [name for name in ("bf16", "fp8") if capability >= LEAST_CAPABILITY[name]]
    return (family, *(f"{family}-{name}" for name in ("fp16", "int8", *narrow)))


def options(folder, **changes):
    np.savez(folder / "rows.npz", x=np.random.default_rng(0).standard_normal((32, 4)).astype("f4"))
    onnx.save(mlp_model(hidden=256), folder / "m.onnx")
    return Options(calibrate=folder / "rows.npz", device="gpu", max_rows=8, profile_s=0.5, **changes)


def test_engines_are_executed_and_near_enough(targets, tmp_path):
    for artifact in convert(tmp_path / "m.onnx", tmp_path / "out", targets, options(tmp_path)):
        assert artifact.parity()["executed"] is True and artifact.parity()["passed"] is True
        assert artifact.cost_curve("gpu").rows == (1, 2, 4, 8)
        runtime = open_runtime(artifact, accelerator="gpu")
        with pytest.raises(InvalidRequest, match="outside the ranges"):
            runtime.run((np.zeros((9, 4), "f4"),))


def test_engines_left_to_the_replica_are_built_once_and_answer_as_the_source(targets, tmp_path):
    artifacts = convert(tmp_path / "m.onnx", tmp_path / "out", targets, options(tmp_path, engine="on-load"))
    derived = DerivedFiles(str(tmp_path / "store"), tmp_path / "cache")
    for artifact in artifacts:
        assert artifact.parity()["executed"] is False
        before_s = derived.spent_s
        first = open_runtime(artifact, accelerator="gpu", derived=derived)
        built_s = derived.spent_s
        second = open_runtime(artifact, accelerator="gpu", derived=derived)
        assert derived.spent_s == built_s > before_s
        rows = np.ones((3, 4), "f4")
        np.testing.assert_allclose(first.run((rows,))[0], second.run((rows,))[0], rtol=1e-3, atol=1e-3)


def test_a_kept_engine_that_is_no_engine_is_built_again(family, tmp_path):
    (artifact,) = convert(tmp_path / "m.onnx", tmp_path / "out", (family,), options(tmp_path, engine="on-load"))
    derived = DerivedFiles(str(tmp_path / "store"), tmp_path / "cache")
    version = __import__(module_of(family)).__version__
    (tmp_path / "no-engine").mkdir()
    (tmp_path / "no-engine" / "model.engine").write_bytes(b"no engine" * 100)
    derived.put(artifact.digest, key_of(module_of(family), version, TorchDevice().gpu), tmp_path / "no-engine")
    runtime = open_runtime(artifact, accelerator="gpu", derived=derived)
    assert runtime.run((np.ones((3, 4), "f4"),))[0].shape == (3, 3)


def test_an_engine_whose_answers_differ_from_the_source_is_refused(family, tmp_path):
    (artifact,) = convert(tmp_path / "m.onnx", tmp_path / "out", (family,), options(tmp_path, engine="on-load"))
    with np.load(artifact.path / "answers.npz") as answers:
        wrong = {name: answers[name][::-1] for name in answers.files}
    np.savez(artifact.path / "answers.npz", **wrong)
    with pytest.raises(EngineFailed, match="does not answer the sample as the source does"):
        open_runtime(Artifact.read(artifact.path), accelerator="gpu")
