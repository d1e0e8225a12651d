"""TorchScript archives: what may be loaded without trust, and their export to ONNX.

Loading one runs no Python and unpickles no classes of Python, but it is a program all the same: its code runs in
torch's interpreter, which has operators for files and for other processes, and may bind classes of C++ extensions. The
code lies in the archive as text, and torch runs nothing that is not in that text, so it is searched before torch sees
it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.errors import ConversionFailed
from converters.onnx_failures import brief

MAX_ARCHIVE_BYTES = 64 << 30
MAX_CODE_BYTES = 256 << 20

# aten::from_file and aten::save reach files; rpc_*, remote and to_here other processes.
_REACHES_OUT = re.compile(r"\b(from_file|save|load|rpc_\w+|remote|to_here|__torch__\.torch\.classes\.\w+)\b")
_NAMESPACE = re.compile(r"\bops\.(\w+)\.")
_OLD_INDEX = "model.json"  # names the members that hold an old archive's code
_PLAIN_NAMESPACES = {"aten", "prim", "prims", "torchvision"}


def load_script(path: Path, trust_pickle: bool) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The script module in evaluation mode, and notes.

    Raises: ConversionFailed if it is damaged, or its code reaches out of torch and is not trusted.
    """
    _check(path, trust_pickle)
    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:
        raise ConversionFailed(f"{path.name}: torch.jit cannot load it: {brief(error)}") from None
    notes: tuple[str, ...] = ()
    if any(getattr(part, "training", False) for part in module.modules()):
        notes = ("the source was in training mode and was put into evaluation mode",)
    module.eval()
    return module, notes


def _check(path: Path, trusted: bool) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MAX_ARCHIVE_BYTES:
                raise ConversionFailed(f"{path.name}: it unpacks to more than {MAX_ARCHIVE_BYTES} bytes")
            # torch finds members whatever their case.
            inner = {member: member.filename.partition("/")[2].lower() for member in members}
            code = [member for member, name in inner.items() if name.startswith("code/") and member.file_size]
            if sum(member.file_size for member in code) > MAX_CODE_BYTES:
                raise ConversionFailed(f"{path.name}: its code has more than {MAX_CODE_BYTES} bytes")
            if trusted:
                return
            if _OLD_INDEX in inner.values():
                raise ConversionFailed(
                    f"{path.name}: an archive of torch before 1.4, whose code may be anywhere in it; --trust-pickle "
                    "loads it all the same"
                )
            for member in code:
                found = unsafe(archive.read(member).decode("utf-8", errors="replace"))
                if found:
                    raise ConversionFailed(
                        f"{path.name}: its code uses {found}, which reaches out of the model; --trust-pickle loads it "
                        "all the same"
                    )
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ConversionFailed(f"{path.name}: not a TorchScript archive ({brief(error)})") from None


def unsafe(code: str) -> str | None:
    """What in TorchScript code could reach out of the model, or None."""
    match = _REACHES_OUT.search(code)
    if match:
        return repr(match[1])
    return next((f"operators of {name!r}" for name in _NAMESPACE.findall(code) if name not in _PLAIN_NAMESPACES), None)


def export_script(
    module: Any,
    args: Sequence[torch.Tensor],
    names: Sequence[str],
    free: Sequence[Mapping[int, str]],
    opset: int,
    path: Path,
) -> Path:
    """The script as ONNX. `free[i]` names the free axes of input i. Raises: ConversionFailed."""
    try:
        torch.onnx.export(
            module,
            tuple(args),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=list(names),
            dynamic_axes={name: dict(axes) for name, axes in zip(names, free, strict=True) if axes},
        )
    except Exception as error:
        raise ConversionFailed(f"torch.onnx: {type(error).__name__}: {brief(error)}") from None
    return path
