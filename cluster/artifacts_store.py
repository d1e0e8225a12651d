"""Where published artifacts are kept: a folder, or any fsspec URL. One folder per artifact, named by its digest.

Putting the same artifact twice changes nothing, and nothing is ever written over. An artifact is there once its
manifest is: locally a whole folder is renamed into place, remotely the manifest goes last.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.artifact import MANIFEST, Artifact
from cluster.errors import ArtifactCorrupt, InvalidRequest, OperatorError, ServingError, StoreUnavailable

MAX_FILES = 10_000
MAX_BYTES = 1 << 40
MAX_MANIFEST_BYTES = 16 << 20
_CHUNK_BYTES = 4 << 20


class ArtifactStore:
    """Artifacts below `url`; what is fetched from elsewhere is kept in `cache`."""

    def __init__(self, url: str, cache: Path) -> None:
        self._url = url
        self._cache = cache

    def put(self, artifact: Artifact) -> str:
        """The URI `artifact` is kept at from now on: a path, or a URL below the store's.

        Raises: ArtifactCorrupt if its files do not match its manifest, StoreUnavailable, OperatorError.
        """
        artifact.verify()
        names = _names(artifact)
        folder = local_path(self._url)
        if folder is not None:
            target = folder.absolute() / artifact.digest
            with _explained(self._url):
                _place(target, artifact.digest, lambda temporary: _copy_local(artifact, names, temporary))
            return str(target)
        uri = f"{self._url.rstrip('/')}/{artifact.digest}"
        with _explained(self._url):
            fs, root = _filesystem(uri)
            if fs.exists(f"{root}/{MANIFEST}") and all(
                fs.exists(f"{root}/{name}") and fs.size(f"{root}/{name}") == (artifact.path / name).stat().st_size
                for name in names
            ):
                return uri
            for name in (*(name for name in names if name != MANIFEST), MANIFEST):
                remote = f"{root}/{name}"
                fs.makedirs(remote.rsplit("/", 1)[0], exist_ok=True)
                fs.put_file(str(artifact.path / name), remote)
        return uri

    def fetch(self, uri: str, digest: str) -> Path:
        """A local folder holding the artifact at `uri`: the folder itself, or a verified copy in the cache.

        A local folder is used in place and not verified here; `Artifact.verify` does that.

        Raises: ArtifactCorrupt if it is not there or not what `digest` says, StoreUnavailable, OperatorError if the
            disk is too small.
        """
        folder = local_path(uri)
        if folder is not None:
            if not (folder / MANIFEST).is_file():
                raise ArtifactCorrupt(f"{uri}: no artifact is there (no {MANIFEST})")
            return folder
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise InvalidRequest(f"digest: expected a SHA-256 in hex, got {digest!r}")
        target = self._cache / digest
        with _explained(uri):
            _place(target, digest, lambda temporary: _download(uri, digest, temporary))
        return target

    def verified(self, uri: str, digest: str) -> Artifact:
        """The artifact at `uri`, fetched, with every file checked against its SHA-256 once.

        Raises: as `fetch`, and ArtifactCorrupt, naming the file that is not what the manifest says.
        """
        artifact = Artifact.read(self.fetch(uri, digest))
        if artifact.digest != digest:
            raise ArtifactCorrupt(f"{MANIFEST}: expected digest {digest[:16]}..., got {artifact.digest[:16]}...")
        if local_path(uri) is not None:  # a copy in the cache was checked when it was fetched
            artifact.verify()
        return artifact


def size_bytes(artifact: Artifact) -> int:
    """Bytes of the artifact's files, manifest included. Raises: ArtifactCorrupt if one is missing."""
    try:
        return sum((artifact.path / name).stat().st_size for name in _names(artifact))
    except OSError as error:
        raise ArtifactCorrupt(f"{error.filename}: {error.strerror}") from None


def local_path(url: str) -> Path | None:
    """The folder `url` means, or None if it is somewhere else than in the local file system."""
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    return None if "://" in url else Path(url)


def _names(artifact: Artifact) -> list[str]:
    """The artifact's own files. Whatever else lies in its directory is not part of it."""
    names = sorted({*artifact.manifest.files, MANIFEST})
    if len(names) > MAX_FILES:
        raise InvalidRequest(f"artifact: at most {MAX_FILES} files, {artifact.path} has {len(names)}")
    return names


def _place(target: Path, digest: str, fill: Any) -> None:
    """Make `target` a whole artifact with `digest`, once: `fill` a folder beside it and rename that.

    Several processes may do this at the same time; the first one's folder stays.
    """
    if _is_whole(target, digest):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{digest[:16]}-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        fill(temporary)
        if not _is_whole(temporary, digest):
            raise ArtifactCorrupt(f"{target}: what was copied does not match the manifest; the source was changed")
        if target.exists() and not _is_whole(target, digest):
            target.rename(target.parent / f".damaged-{uuid.uuid4().hex}")
        try:
            temporary.rename(target)
        except OSError:
            if not _is_whole(target, digest):
                raise
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(folder: Path, digest: str) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    try:
        artifact = Artifact.read(folder)
        artifact.verify()
    except (ArtifactCorrupt, InvalidRequest):
        return False
    return artifact.digest == digest


def _copy_local(artifact: Artifact, names: list[str], into: Path) -> None:
    _require_space(into, size_bytes(artifact))
    for name in names:
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with (artifact.path / name).open("rb") as source, target.open("xb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK_BYTES)
            copy.flush()
            os.fsync(copy.fileno())


def _download(uri: str, digest: str, into: Path) -> None:
    """Fetch the manifest, believe it only if `digest` is its own, then fetch the files it names and no others."""
    fs, root = _filesystem(uri)
    if not fs.exists(f"{root}/{MANIFEST}"):
        raise ArtifactCorrupt(f"{uri}: no artifact is there (no {MANIFEST})")
    if fs.size(f"{root}/{MANIFEST}") > MAX_MANIFEST_BYTES:
        raise ArtifactCorrupt(f"{uri}/{MANIFEST}: more than {MAX_MANIFEST_BYTES} bytes")
    fs.get_file(f"{root}/{MANIFEST}", str(into / MANIFEST))
    artifact = Artifact.read(into)
    if artifact.digest != digest:
        raise ArtifactCorrupt(f"{uri}: expected digest {digest[:16]}..., got {artifact.digest[:16]}...")
    names = [name for name in _names(artifact) if name != MANIFEST]
    missing = [name for name in names if not fs.exists(f"{root}/{name}")]
    if missing:
        raise ArtifactCorrupt(f"{uri}: the manifest lists {missing[0]}, but it is not there")
    total = sum(fs.size(f"{root}/{name}") for name in names)
    if total > MAX_BYTES:
        raise ArtifactCorrupt(f"{uri}: {total} bytes, more than {MAX_BYTES}")
    _require_space(into, total)
    for name in names:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{root}/{name}", str(into / name))


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OperatorError(f"{folder.parent}: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _filesystem(uri: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    fs, root = url_to_fs(uri)
    return fs, str(root).rstrip("/")


@contextmanager
def _explained(url: str) -> Iterator[None]:
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
