"""Folders that appear whole or not at all, and file systems behind URLs: what keeps artifacts stands on these."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.errors import ArtifactCorrupt, InvalidRequest, OperatorError, ServingError, StoreUnavailable

MAX_FILES = 10_000
MAX_BYTES = 1 << 40
_CHUNK_BYTES = 4 << 20


def local_path(url: str) -> Path | None:
    """The folder `url` means, or None if it is somewhere else than in the local file system."""
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    return None if "://" in url else Path(url)


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system that `uri` names, and the path in it. Raises whatever fsspec does; see `explained`."""
    from fsspec.core import url_to_fs

    fs, root = url_to_fs(uri)
    return fs, str(root).rstrip("/")


def check_usable(url: str) -> None:
    """Raises: InvalidRequest if no file system of this kind is known, OperatorError if its package is missing.

    Only what the URL says is looked at.
    """
    from fsspec import get_filesystem_class

    if url and local_path(url) is None:
        with explained(url):
            for part in url.split("::"):  # fsspec's way to write one file system over another
                get_filesystem_class(part.partition("://")[0])


def check_digest(digest: str) -> None:
    """Raises: InvalidRequest unless it is a SHA-256 in hex, and so a name that stays in its folder."""
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise InvalidRequest(f"digest: expected a SHA-256 in hex, got {digest!r}")


def place(target: Path, whole: Callable[[Path], bool], fill: Callable[[Path], None]) -> None:
    """Make `target` a folder that is `whole`, once: `fill` a folder beside it and rename that.

    Several processes may do this at the same time; the first one's folder stays. A damaged one is replaced.

    Raises: ArtifactCorrupt if what `fill` left is not whole; OSError, and whatever `fill` raises.
    """
    if whole(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name[:16]}-{uuid.uuid4().hex}"
    temporary.mkdir()
    damaged = target.parent / f".damaged-{uuid.uuid4().hex}"
    try:
        fill(temporary)
        if not whole(temporary):
            raise ArtifactCorrupt(f"{target}: what was copied does not match the manifest; the source was changed")
        if target.exists() and not whole(target):
            target.rename(damaged)
        try:
            temporary.rename(target)
        except OSError:
            if not whole(target):
                raise
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)


def copy_file(source: Path, target: Path) -> None:
    """A new file at `target`, on the disk when this returns. Raises: OSError, also if `target` is there already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as given, target.open("xb") as copy:
        shutil.copyfileobj(given, copy, _CHUNK_BYTES)
        copy.flush()
        os.fsync(copy.fileno())


def require_space(folder: Path, needed: int) -> None:
    """Raises: OperatorError if fewer than `needed` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OperatorError(f"{folder.parent}: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")


@contextmanager
def explained(url: str) -> Iterator[None]:
    """What a file system raises, of which there are many, as our own errors."""
    try:
        yield
    except ServingError:
        raise
    except ImportError as error:
        raise OperatorError(f"artifacts at {url}: a package is missing: {error}") from None
    except ValueError as error:
        raise InvalidRequest(f"artifacts: {url}: {error}") from None
    except Exception as error:
        raise StoreUnavailable(f"artifacts at {url}: {type(error).__name__}: {error}") from None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
