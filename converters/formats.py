"""What a model may come as, and what it may become."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from cluster.errors import InvalidRequest


class Format(StrEnum):
    """A kind of model on disk. Targets are what `--to` takes."""

    TORCH = "torch"  # weights (safetensors, state dict) with a factory, or a pickled module
    PT2 = "pt2"  # torch.export
    ONNX_FILE = "onnx-file"  # an ONNX file from elsewhere, not yet checked
    ONNX = "onnx"
    INT8 = "int8"  # ONNX with explicit quantise/dequantise nodes, for CPUs


SOURCES = (Format.TORCH, Format.PT2, Format.ONNX_FILE)
TARGETS = (Format.ONNX, Format.INT8)

_BY_SUFFIX = {
    ".safetensors": Format.TORCH,
    ".pth": Format.TORCH,
    ".pt": Format.TORCH,
    ".bin": Format.TORCH,
    ".pt2": Format.PT2,
    ".onnx": Format.ONNX_FILE,
}


def source_format(path: Path) -> Format:
    """The format of a source file, by its suffix. Raises: InvalidRequest if it is missing or of no known kind."""
    if not path.is_file():
        raise InvalidRequest(f"source: expected a file, {path} is {'a folder' if path.is_dir() else 'not there'}")
    found = _BY_SUFFIX.get(path.suffix.lower())
    if found is None:
        raise InvalidRequest(f"source: expected a file ending in {', '.join(_BY_SUFFIX)}, got {path.name!r}")
    return found


def target_format(name: str) -> Format:
    """The target called `name`. Raises: InvalidRequest."""
    for target in TARGETS:
        if target.value == name:
            return target
    raise InvalidRequest(f"to: expected some of {', '.join(TARGETS)}, got {name!r}")
