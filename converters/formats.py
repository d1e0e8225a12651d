"""What a model may come as, and what it may become."""

from __future__ import annotations

import zipfile
from enum import StrEnum
from pathlib import Path

from cluster.errors import InvalidRequest


class Format(StrEnum):
    """A kind of model on disk. Targets are what `--to` takes."""

    TORCH = "torch"  # weights (safetensors, state dict) with a factory, or a pickled module
    TORCHSCRIPT_FILE = "torchscript-file"  # a TorchScript archive from elsewhere, not yet checked
    TORCHSCRIPT = "torchscript"  # TorchScript, to be served by PyTorch
    PT2 = "pt2"  # torch.export
    PYTORCH = "pytorch"  # .pt2, to be served by PyTorch
    ONNX_FILE = "onnx-file"  # an ONNX file from elsewhere, not yet checked
    ONNX = "onnx"
    OPTIMIZED = "optimized"  # ONNX after ONNX Runtime's own fusions
    FP16 = "fp16"
    BF16 = "bf16"  # ONNX for TensorRT: on CPUs ONNX Runtime computes no BF16
    INT8 = "int8"  # ONNX with explicit quantise/dequantise nodes, for CPUs
    INT8_DYNAMIC = "int8-dynamic"  # ONNX whose ranges are taken at run time
    INT8_TRT = "int8-trt"  # as INT8, the way TensorRT reads it
    FP8_TRT = "fp8-trt"  # the same with FP8
    SKLEARN = "sklearn"  # skops, or a pickle of a fitted model or pipeline
    XGBOOST = "xgboost"
    LIGHTGBM = "lightgbm"
    SAVED_MODEL = "saved-model"  # a TensorFlow SavedModel from elsewhere, not yet checked
    KERAS = "keras"
    TENSORFLOW = "tensorflow"  # SavedModel
    TFLITE_FILE = "tflite-file"  # a TFLite file from elsewhere, not yet checked
    TFLITE = "tflite"
    TFLITE_FP16 = "tflite-fp16"
    TFLITE_DYNAMIC = "tflite-dynamic"  # INT8 weights, ranges of activations at run time
    TFLITE_INT8 = "tflite-int8"
    TENSORRT = "tensorrt"  # an engine for data centre GPUs, in the types of the ONNX file
    TENSORRT_FP16 = "tensorrt-fp16"
    TENSORRT_BF16 = "tensorrt-bf16"
    TENSORRT_INT8 = "tensorrt-int8"
    TENSORRT_FP8 = "tensorrt-fp8"
    TENSORRT_RTX = "tensorrt-rtx"  # an engine for GeForce and RTX GPUs, which is finished on the device
    TENSORRT_RTX_FP16 = "tensorrt-rtx-fp16"
    TENSORRT_RTX_BF16 = "tensorrt-rtx-bf16"
    TENSORRT_RTX_INT8 = "tensorrt-rtx-int8"
    TENSORRT_RTX_FP8 = "tensorrt-rtx-fp8"


_BY_SUFFIX = {
    ".safetensors": Format.TORCH,
    ".pth": Format.TORCH,
    ".pt": Format.TORCH,
    ".bin": Format.TORCH,
    ".jit": Format.TORCHSCRIPT_FILE,
    ".pt2": Format.PT2,
    ".onnx": Format.ONNX_FILE,
    ".keras": Format.KERAS,
    ".tflite": Format.TFLITE_FILE,
    ".skops": Format.SKLEARN,
    ".pkl": Format.SKLEARN,
    ".pickle": Format.SKLEARN,
    ".joblib": Format.SKLEARN,
    ".json": Format.XGBOOST,
    ".ubj": Format.XGBOOST,
    ".txt": Format.LIGHTGBM,
}

# A folder is known by a file in it.
_BY_MEMBER = {"saved_model.pb": Format.SAVED_MODEL}

SOURCES = tuple(dict.fromkeys([*_BY_SUFFIX.values(), *_BY_MEMBER.values(), Format.TORCHSCRIPT_FILE]))


def source_format(path: Path) -> Format:
    """The format of a source by its suffix, or by what is in it where suffixes are shared.

    Raises: InvalidRequest if it is missing or of no known kind.
    """
    if path.is_dir():
        for member, folder_format in _BY_MEMBER.items():
            if (path / member).is_file():
                return folder_format
        raise InvalidRequest(f"source: expected a file{_folders()}, {path} is a folder")
    if not path.is_file():
        raise InvalidRequest(f"source: expected a file{_folders()}, {path} is not there")
    found = _BY_SUFFIX.get(path.suffix.lower())
    if found is None:
        raise InvalidRequest(f"source: expected a file ending in {', '.join(_BY_SUFFIX)}, got {path.name!r}")
    return Format.TORCHSCRIPT_FILE if found == Format.TORCH and _holds_script(path) else found


def _folders() -> str:
    return f" or a folder with {' or '.join(_BY_MEMBER)}" if _BY_MEMBER else ""


def _holds_script(path: Path) -> bool:
    """Whether a torch file is a TorchScript archive: those carry their code as text."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False
