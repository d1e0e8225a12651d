"""TorchScript archives: loaded without trust, kept for serving, exported to ONNX.

Loading one runs no Python, but it is a program all the same: its code runs in torch's interpreter, parts of it already
while it is loaded. So an archive is rebuilt from the members that torch needs before torch sees it, its code searched
(`script_code`) and its data read with stand-ins (`script_data`). What is trusted then is torch's
interpreter and its operators, on whatever values they are given.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from cluster.errors import ConversionFailed
from converters.onnx.failures import brief
from converters.torch.archive import ADVICE, NotPlain, TorchArchive, reading
from converters.torch.script_code import unsafe
from converters.torch.script_data import Refused, check_pickle

MAX_CODE_BYTES = 256 << 20
MAX_PICKLE_BYTES = 256 << 20

_KIND = "TorchScript"
_OLD_INDEX = "model.json"  # names the members that hold an old archive's code
_PICKLES = ("constants", "data")
_CODE = re.compile(r"code/[\w./]+\.py")
_TENSORS = re.compile(r"(constants|data)/\w+")
_MARKS = re.compile(r"version|byteorder|\.format_version|\.storage_alignment|\.data/[a-z_]+")


def load_script(
    path: Path, trust_pickle: bool, advice: str = ADVICE, device: str = "cpu"
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The script module in evaluation mode, on `device` with all its constants, and notes.

    Raises: ConversionFailed if it is damaged, or could reach out of torch and is not trusted.
    """
    with tempfile.NamedTemporaryFile(suffix=".pt") as copy:
        source = path
        if not trust_pickle:
            try:
                write_plain(path, copy)
            except NotPlain as error:
                raise ConversionFailed(error.message + advice) from None
            copy.flush()
            source = Path(copy.name)
        try:
            with settled():
                module = torch.jit.load(str(source), map_location=device)
        except Exception as error:
            raise ConversionFailed(f"{path.name}: torch.jit cannot load it: {brief(error)}") from None
    notes: tuple[str, ...] = ()
    if any(getattr(part, "training", False) for part in module.modules()):
        notes = ("the source was in training mode and was put into evaluation mode",)
    module.eval()
    return module, notes


@contextmanager
def settled() -> Iterator[None]:
    """Without torch's reminders that TorchScript is not developed any further."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def write_plain(path: Path, target: IO[bytes]) -> None:
    """Write the archive to `target` with what torch needs to load it, and nothing that reaches out of torch.

    Raises: ConversionFailed if it is damaged, NotPlain naming what was found.
    """
    with reading(path, _KIND, may_be_packed=_may_be_packed) as archive:
        _check_outline(archive)
        archive.write(target, _parts(archive))


def _may_be_packed(member: str) -> bool:
    return member.lower().startswith("code/") or _dropped(member)


def _dropped(member: str) -> bool:
    """Whether torch loads the model without it: paths of sources, files for other loaders, whatever the user added."""
    return not any(pattern.fullmatch(member) for pattern in (_CODE, _TENSORS, _MARKS)) and member not in _PICKLE_FILES


_PICKLE_FILES = tuple(f"{name}.pkl" for name in _PICKLES)


def _check_outline(archive: TorchArchive) -> None:
    name, members = archive.name, archive.members
    if _OLD_INDEX in map(str.lower, members):
        raise NotPlain(f"{name}: an archive of torch before 1.4, whose code may be anywhere in it")
    missing = [member for member in _PICKLE_FILES if member not in members]
    if missing:
        raise ConversionFailed(f"{name}: not a {_KIND} archive (it has no {', '.join(missing)})")
    code_bytes = sum(info.file_size for member, info in members.items() if _CODE.fullmatch(member))
    if code_bytes > MAX_CODE_BYTES:
        raise ConversionFailed(f"{name}: its code has {code_bytes} bytes, at most {MAX_CODE_BYTES} are read")


def _parts(archive: TorchArchive) -> Iterator[tuple[str, bytes | None]]:
    records = {member: info.file_size for member, info in archive.members.items()}
    for member in archive.members:
        if _dropped(member):
            continue
        content = None
        if _CODE.fullmatch(member):
            content = archive.read(member, MAX_CODE_BYTES)
            found = unsafe(content.decode("utf-8", errors="replace"))
            if found:
                raise NotPlain(f"{archive.name}: its code uses {found}, which reaches out of the model")
        elif member in _PICKLE_FILES:
            content = archive.read(member, MAX_PICKLE_BYTES)
            folder = member.removesuffix(".pkl") + "/"
            held = {key.removeprefix(folder): size for key, size in records.items() if key.startswith(folder)}
            try:
                check_pickle(content, held)
            except Refused as error:
                raise NotPlain(f"{archive.name}: {member} holds {error}, which is no part of a plain model") from None
        yield member, content


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
