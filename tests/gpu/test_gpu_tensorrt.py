"""TensorRT engines on the GPU they are built for: proved by running them, and measured there."""

from importlib.util import find_spec

import numpy as np
import onnx
import pytest

from cluster.errors import InvalidRequest
from converters.build import convert
from converters.candidate import Options
from converters.runtime import open_runtime
from onnx_models import mlp_model


def gpu_is_missing() -> str:
    """Why there is no GPU to test on; "" if there is one."""
    if find_spec("torch") is None:
        return "torch, which finds CUDA devices, is not installed"
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device"


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(gpu_is_missing()), reason=gpu_is_missing() or "there is a GPU")]


@pytest.mark.parametrize("family", ["tensorrt", "tensorrt-rtx"])
def test_engines_are_executed_and_near_enough(family, tmp_path):
    pytest.importorskip(family.replace("-", "_"))
    onnx.save(mlp_model(hidden=256), tmp_path / "m.onnx")
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).standard_normal((32, 4)).astype("f4"))
    options = Options(calibrate=tmp_path / "rows.npz", device="gpu", max_rows=8, profile_s=0.5)
    targets = (family, f"{family}-fp16", f"{family}-int8")
    for artifact in convert(tmp_path / "m.onnx", tmp_path / "out", targets, options):
        assert artifact.parity()["executed"] is True and artifact.parity()["passed"] is True
        assert artifact.cost_curve("gpu").rows == (1, 2, 4, 8)
        runtime = open_runtime(artifact, accelerator="gpu")
        with pytest.raises(InvalidRequest, match="outside the ranges"):
            runtime.run((np.zeros((9, 4), "f4"),))
