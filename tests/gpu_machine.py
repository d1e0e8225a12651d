"""What tests that need a GPU find on this machine, and why they are skipped where it is not there."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest

from converters.cuda_device import first_device

# TensorRT-RTX is for GeForce and RTX GPUs: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest, support matrix
RTX_CAPABILITIES = ("7.5", "8.6", "8.9", "12.0", "12.1")


def missing(*modules: str, onnxruntime_gpu: bool = False, tensorrt_major: int = 0) -> str:
    """Why tests that need these modules, and these versions, cannot run; "" if they can."""
    gpu = first_device()
    if gpu is None:
        return "NVIDIA's driver finds no GPU"
    if "tensorrt_rtx" in modules and gpu.capability not in RTX_CAPABILITIES:
        return f"TensorRT-RTX does not know GPUs of compute capability {gpu.capability}"
    absent = [name for name in modules if find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    if onnxruntime_gpu and not _installed("onnxruntime-gpu"):
        return "onnxruntime-gpu is not installed"
    found = _installed("tensorrt-cu13")
    if tensorrt_major and found.split(".")[0] != str(tensorrt_major):
        return f"TensorRT {tensorrt_major} is needed, {found or 'none'} is installed"
    return ""


def marks(*modules: str, onnxruntime_gpu: bool = False, tensorrt_major: int = 0) -> list[pytest.MarkDecorator]:
    """For `pytestmark`: needs a GPU and what else is named."""
    why = missing(*modules, onnxruntime_gpu=onnxruntime_gpu, tensorrt_major=tensorrt_major)
    return [pytest.mark.gpu, pytest.mark.skipif(bool(why), reason=why or "all is there")]


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
