"""Zip archives of torch (`.pt2`, TorchScript), read here and written anew before torch sees them.

Python's reader of zip files and torch's do not agree on every file: on names that come twice or differ in case, on what
lies before or behind the archive, on members that overlap. So nothing is checked by one reader and loaded by the other:
what was read here is copied to a file with one plain listing, and torch is given the copy.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cluster.errors import ConversionFailed
from converters.onnx.failures import brief

MAX_ARCHIVE_BYTES = 64 << 30
MAX_MEMBERS = 1 << 20

_ROOT = "archive"
_CHUNK_BYTES = 1 << 20


class NotPlain(ConversionFailed):
    """An archive that could do more than hold a model. Trust would help."""


ADVICE = "; --trust-pickle loads it all the same"


@dataclass(frozen=True, slots=True)
class TorchArchive:
    """An open archive. `members` are what it holds, by their names below its one folder."""

    name: str
    members: Mapping[str, zipfile.ZipInfo]
    file: zipfile.ZipFile

    def read(self, member: str, max_bytes: int) -> bytes:
        """A member's content. Raises: ConversionFailed if it is larger than `max_bytes`."""
        info = self.members[member]
        if info.file_size > max_bytes:
            raise ConversionFailed(f"{self.name}: {member}: {info.file_size} bytes, at most {max_bytes} are read")
        return self.file.read(info)

    def write(self, target: IO[bytes], parts: Iterable[tuple[str, bytes | None]]) -> None:
        """A new archive of `parts`: a member with its new content, or with None where it is copied as it is."""
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as made:
            for member, content in parts:
                entry = zipfile.ZipInfo(f"{_ROOT}/{member}")
                if content is not None:
                    made.writestr(entry, content)
                    continue
                info = self.members[member]
                entry.file_size = info.file_size
                with self.file.open(info) as source, made.open(entry, "w") as copy:
                    shutil.copyfileobj(source, copy, _CHUNK_BYTES)


@contextmanager
def reading(
    path: Path, kind: str, may_be_packed: Callable[[str], bool] = lambda member: False
) -> Iterator[TorchArchive]:
    """The archive at `path`, open. `kind` names it in errors.

    torch compresses only code. All other members lie in the file as they are, so together they cannot be larger than it
    is, however they overlap.

    Raises: ConversionFailed if it is damaged, too large, or its listing can be read in more than one way; also for
        damage that is met while the context lasts.
    """
    try:
        with zipfile.ZipFile(path) as file:
            infos = [info for info in file.infolist() if not info.is_dir()]
            problem = _problem(infos, path.stat().st_size, may_be_packed)
            if problem:
                raise ConversionFailed(f"{path.name}: not a {kind} archive as torch writes them: {problem}")
            yield TorchArchive(path.name, {_inner(info): info for info in infos}, file)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RecursionError, RuntimeError, zlib.error) as error:
        raise ConversionFailed(f"{path.name}: not a {kind} archive ({brief(error)})") from None


def _problem(infos: list[zipfile.ZipInfo], size_bytes: int, may_be_packed: Callable[[str], bool]) -> str:
    """Why the listing is not taken, or ""."""
    if len(infos) > MAX_MEMBERS or sum(info.file_size for info in infos) > MAX_ARCHIVE_BYTES:
        return f"more than {MAX_MEMBERS} members or {MAX_ARCHIVE_BYTES} bytes"
    if len({info.filename.partition("/")[0] for info in infos}) != 1 or not all(map(_inner, infos)):
        return "its members do not lie in one folder"
    # torch finds members whatever their case.
    if len({info.filename.lower() for info in infos}) != len(infos):
        return "two members have one name"
    packed = [info for info in infos if info.compress_type != zipfile.ZIP_STORED]
    odd = next((info for info in packed if not may_be_packed(_inner(info))), None)
    if odd is not None:
        return f"{_inner(odd)[:80]!r} is compressed"
    if sum(info.file_size for info in infos if info.compress_type == zipfile.ZIP_STORED) > size_bytes:
        return "its members overlap"
    return ""


def _inner(info: zipfile.ZipInfo) -> str:
    return info.filename.partition("/")[2]
