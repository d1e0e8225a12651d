"""Where published artifacts are kept: a folder, or any fsspec URL. One folder per artifact, named by its digest.

Putting the same artifact twice changes nothing, and nothing is ever written over. An artifact is there once its
manifest is: locally a whole folder is renamed into place, remotely the manifest goes last.
"""

from __future__ import annotations

from pathlib import Path

from cluster.artifact import MANIFEST, Artifact
from cluster.derived import DerivedFiles
from cluster.errors import ArtifactCorrupt, InvalidRequest
from cluster.storage import (
    MAX_BYTES,
    MAX_FILES,
    check_digest,
    copy_file,
    explained,
    filesystem,
    local_path,
    place,
    require_space,
)

MAX_MANIFEST_BYTES = 16 << 20


class ArtifactStore:
    """Artifacts below `url`; what is fetched from elsewhere is kept in `cache`."""

    def __init__(self, url: str, cache: Path) -> None:
        self._url = url
        self._cache = cache

    @property
    def derived(self) -> DerivedFiles:
        """What machines have made of these artifacts for themselves."""
        return DerivedFiles(self._url, self._cache)

    def put(self, artifact: Artifact) -> str:
        """The URI `artifact` is kept at from now on: a path, or a URL below the store's.

        Raises: ArtifactCorrupt if its files do not match its manifest, StoreUnavailable, OperatorError.
        """
        artifact.verify()
        names = _names(artifact)
        folder = local_path(self._url)
        if folder is not None:
            target = folder.absolute() / artifact.digest
            with explained(self._url):
                place(
                    target,
                    lambda folder: _is_whole(folder, artifact.digest),
                    lambda temporary: _copy_local(artifact, names, temporary),
                )
            return str(target)
        uri = f"{self._url.rstrip('/')}/{artifact.digest}"
        with explained(self._url):
            fs, root = filesystem(uri)
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
        check_digest(digest)
        target = self._cache / digest
        with explained(uri):
            place(
                target,
                lambda folder: _is_whole(folder, digest),
                lambda temporary: _download(uri, digest, temporary),
            )
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


def _names(artifact: Artifact) -> list[str]:
    """The artifact's own files. Whatever else lies in its directory is not part of it."""
    names = sorted({*artifact.manifest.files, MANIFEST})
    if len(names) > MAX_FILES:
        raise InvalidRequest(f"artifact: at most {MAX_FILES} files, {artifact.path} has {len(names)}")
    return names


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
    require_space(into, size_bytes(artifact))
    for name in names:
        copy_file(artifact.path / name, into / name)


def _download(uri: str, digest: str, into: Path) -> None:
    """Fetch the manifest, believe it only if `digest` is its own, then fetch the files it names and no others."""
    fs, root = filesystem(uri)
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
    require_space(into, total)
    for name in names:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{root}/{name}", str(into / name))
