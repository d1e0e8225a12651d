"""What a machine has made of an artifact for itself, kept for the next one of its kind: an engine for one GPU.

    STORE/derived/<the artifact's digest>/<name of the key>/
        derived.json    the artifact, the key, and every file with its SHA-256
        <files>         by their own names in a folder; behind a URL by their SHA-256

A key states what the files fit: which GPU, which version of which library. An entry is used only if it says the same
artifact and key itself and each of its files has its SHA-256; anything less counts as not there, and is made again.
Behind a URL, files of two writers cannot mix, since a file's name is its content; the index comes last. Whoever can
write to the artifact store can write here, and unlike artifacts these files are vouched for by no digest elsewhere:
give write access to nobody who may not choose what replicas load.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

import msgspec

from cluster.artifact import sha256_of
from cluster.errors import ArtifactCorrupt, OperatorError, ServingError, StoreUnavailable
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

log = logging.getLogger(__name__)

FOLDER, INDEX = "derived", "derived.json"
SCHEMA_VERSION = 1
MAX_INDEX_BYTES = 4 << 20

Key = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Index:
    """What `derived.json` says: `files` maps POSIX relative paths to their SHA-256 in hex."""

    artifact: str
    key: dict[str, str]
    files: dict[str, str]
    schema_version: int = SCHEMA_VERSION

    def describes(self, digest: str, key: Key) -> bool:
        """Whether it is the entry that was asked for, and names files that stay in its folder."""
        named = (self.schema_version, self.artifact, self.key) == (SCHEMA_VERSION, digest, dict(key))
        return named and 0 < len(self.files) <= MAX_FILES and all(_stays(name) for name in self.files)


class DerivedFiles:
    """Derived files of the artifacts in the store at `url`. What comes from elsewhere is kept in `cache`, and so is
    what cannot be written to the store."""

    def __init__(self, url: str, cache: Path) -> None:
        self._url = url
        self._cache = cache
        self._spent_s = 0.0

    @property
    def spent_s(self) -> float:
        """Seconds that `obtain` has spent on making files, and on waiting for another process that made them."""
        return self._spent_s

    def fetch(self, digest: str, key: Key) -> Path | None:
        """A local folder with the files made of the artifact `digest` for `key`, each checked; None if there is none.

        The folder is shared: it must not be written to.

        Raises: InvalidRequest, StoreUnavailable, or OperatorError if the disk is too small.
        """
        check_digest(digest)
        for root in self._roots():
            folder = root / digest / name_of(key)
            if _is_whole(folder, digest, key):
                return folder
        if local_path(self._url) is not None:
            return None
        target = self._cache / FOLDER / digest / name_of(key)
        uri = self._uri(digest, name_of(key))
        with explained(uri):
            if _read_index(uri) is None:
                return None
            try:
                place(target, lambda folder: _is_whole(folder, digest, key), lambda into: _download(uri, into))
            except (ArtifactCorrupt, FileNotFoundError) as error:
                log.warning("derived files at %s are damaged and will be made again: %s", uri, error)
                _forget(uri)
                return None
        return target

    def put(self, digest: str, key: Key, folder: Path) -> Path:
        """Keep the files in `folder` as what was made of the artifact for `key`; an entry that is whole stays instead.

        Returns: the local folder that has the entry now.

        Raises: StoreUnavailable or OperatorError if they could not be kept in the store; a local entry may be there
            all the same.
        """
        check_digest(digest)
        index = Index(digest, dict(key), _hashes(folder))
        problem: ServingError | None = None
        for root in self._roots():
            target = root / digest / name_of(key)
            try:
                with explained(str(root)):
                    place(
                        target,
                        lambda found: _is_whole(found, digest, key),
                        lambda into: _copy(index, folder, into),
                    )
                break
            except (StoreUnavailable, OperatorError) as error:
                problem = problem or error
        else:
            raise problem or StoreUnavailable(f"artifacts at {self._url}: nowhere to keep derived files")
        if local_path(self._url) is None:
            uri = self._uri(digest, name_of(key))
            with explained(uri):
                _upload(uri, index, folder)
        elif problem is not None:
            raise problem
        return target

    @contextmanager
    def obtain(self, digest: str, key: Key, make: Callable[[Path], None]) -> Iterator[Path]:
        """A folder with the files made of the artifact for `key`, which `make` writes into an empty one if need be.

        Of several processes on this machine one makes them and the others wait; on several machines each makes its
        own and the first one's are kept. A store that cannot be reached or written is logged: then the folder lasts
        as long as the context.

        Raises: InvalidRequest for something that is no digest, and whatever `make` raises.
        """
        check_digest(digest)
        with tempfile.TemporaryDirectory(prefix="prism-derived-") as spare:
            found = self._fetched(digest, key)
            if found is None:
                begun_s = time.monotonic()
                with self._alone(digest, key):
                    found = self._fetched(digest, key)  # by whoever was waited for
                    if found is None:
                        make(Path(spare))
                        found = self._kept(digest, key, Path(spare))
                self._spent_s += time.monotonic() - begun_s
            yield found

    def discard(self, digest: str, key: Key) -> None:
        """Forget an entry that turned out to be of no use, wherever it is. What cannot be removed is logged."""
        check_digest(digest)
        for root in self._roots():
            shutil.rmtree(root / digest / name_of(key), ignore_errors=True)
        self._removed(digest, name_of(key))

    def remove(self, digest: str) -> None:
        """Remove all that was made of an artifact, here and in the store. What cannot be removed is logged."""
        check_digest(digest)
        for root in self._roots():
            shutil.rmtree(root / digest, ignore_errors=True)
        self._removed(digest)

    def _fetched(self, digest: str, key: Key) -> Path | None:
        try:
            return self.fetch(digest, key)
        except (StoreUnavailable, OperatorError) as error:
            log.warning("derived files cannot be fetched: %s", error)
            return None

    def _kept(self, digest: str, key: Key, made: Path) -> Path:
        try:
            return self.put(digest, key, made)
        except (StoreUnavailable, OperatorError, ArtifactCorrupt) as error:
            log.warning("derived files cannot be kept, so another replica will make them again: %s", error)
            return made

    def _roots(self) -> tuple[Path, ...]:
        """Local folders of entries, the one to write to first."""
        store, cache = local_path(self._url), self._cache / FOLDER
        return (cache,) if store is None else (store.absolute() / FOLDER, cache)

    def _uri(self, *parts: str) -> str:
        return "/".join((self._url.rstrip("/"), FOLDER, *parts))

    def _removed(self, *parts: str) -> None:
        if local_path(self._url) is not None:
            return
        uri = self._uri(*parts)
        try:
            with explained(uri):
                fs, root = filesystem(uri)
                if fs.exists(root):
                    fs.rm(root, recursive=True)
        except ServingError as error:
            log.warning("derived files cannot be removed: %s", error)

    @contextmanager
    def _alone(self, digest: str, key: Key) -> Iterator[None]:
        """While no other process of this machine has the same; without that where files cannot be locked."""
        file = self._cache / FOLDER / digest / f".{name_of(key)}.lock"
        with ExitStack() as stack:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(file.open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel takes it back when the process ends, however it does
            except OSError as error:
                log.warning("derived files are made without a lock: %s", error)
            yield


def name_of(key: Key) -> str:
    """What an entry's folder is called: a hash of the key, which may hold anything a driver says of a GPU."""
    return sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:32]


def _stays(name: str) -> bool:
    path = PurePosixPath(name)
    confined = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return confined and "\0" not in name and name != INDEX


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != INDEX)
    if not 0 < len(files) <= MAX_FILES:
        raise OperatorError(f"derived files: expected 1 to {MAX_FILES} files in {folder}, got {len(files)}")
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


def _is_whole(folder: Path, digest: str, key: Key) -> bool:
    try:
        raw = (folder / INDEX).read_bytes()
        index = msgspec.json.decode(raw, type=Index)
        return index.describes(digest, key) and all(
            sha256_of(folder / name) == expected for name, expected in index.files.items()
        )
    except (OSError, msgspec.DecodeError):
        return False


def _copy(index: Index, folder: Path, into: Path) -> None:
    require_space(into, sum((folder / name).stat().st_size for name in index.files))
    for name in index.files:
        copy_file(folder / name, into / name)
    (into / INDEX).write_bytes(_encode(index))


def _upload(uri: str, index: Index, folder: Path) -> None:
    fs, root = filesystem(uri)
    there = _read_index(uri)
    if (
        there is not None
        and there.describes(index.artifact, index.key)
        and all(fs.exists(f"{root}/{content}") for content in there.files.values())
    ):
        return
    fs.makedirs(root, exist_ok=True)
    for name, content in index.files.items():
        fs.put_file(str(folder / name), f"{root}/{content}")
    fs.pipe_file(f"{root}/{INDEX}", _encode(index))


def _download(uri: str, into: Path) -> None:
    """The entry's files, unchecked. Raises: ArtifactCorrupt if its index cannot be followed, and what fsspec does."""
    fs, root = filesystem(uri)
    index = _read_index(uri)
    if index is None or not index.describes(index.artifact, index.key):
        raise ArtifactCorrupt(f"{uri}/{INDEX}: it cannot be understood")
    total = sum(fs.size(f"{root}/{content}") for content in index.files.values())
    if total > MAX_BYTES:
        raise ArtifactCorrupt(f"{uri}: {total} bytes, more than {MAX_BYTES}")
    require_space(into, total)
    for name, content in index.files.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{root}/{content}", str(into / name))
    (into / INDEX).write_bytes(_encode(index))


def _read_index(uri: str) -> Index | None:
    """The index behind a URL; None if there is none; one that describes nothing if it cannot be understood."""
    fs, root = filesystem(uri)
    if not fs.exists(f"{root}/{INDEX}"):
        return None
    try:
        if fs.size(f"{root}/{INDEX}") > MAX_INDEX_BYTES:
            return Index("", {}, {})
        return msgspec.json.decode(fs.cat_file(f"{root}/{INDEX}"), type=Index)
    except msgspec.DecodeError:
        return Index("", {}, {})


def _forget(uri: str) -> None:
    """Take a damaged entry's index away, so that the next one may be put. Its files are written over or left."""
    fs, root = filesystem(uri)
    fs.rm_file(f"{root}/{INDEX}")


def _encode(index: Index) -> bytes:
    return msgspec.json.format(msgspec.json.encode(asdict(index)), indent=2) + b"\n"
