"""ONNX Runtime on a GPU: the answers are the CPU's, and a GPU that is asked for is really used."""

import numpy as np
import onnxruntime
import pytest

from converters.runtime import open_runtime
from onnx_models import mlp_artifact


def gpu_is_missing() -> str:
    """Why there is no GPU to test on; "" if there is one."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "onnxruntime-gpu is not installed"
    try:
        import torch

        return "" if torch.cuda.is_available() else "no CUDA device"
    except ImportError:
        return "torch, which finds CUDA devices, is not installed"


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(gpu_is_missing()), reason=gpu_is_missing() or "there is a GPU")]


def test_a_gpu_answers_as_the_cpu_does(tmp_path):
    artifact = mlp_artifact(tmp_path / "a")
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    (on_cpu,) = open_runtime(artifact, accelerator="cpu").run((x,))
    (on_gpu,) = open_runtime(artifact, accelerator="gpu").run((x,))
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)
