"""How a reader keeps up with the version store: what it has read stays in force until something newer is known.

The store may be gone, or come back empty or older than it was. What was read last is kept in memory and in a file, so
that a reader that starts while the store is down has something to go by. A change is believed only from the same data
set (epoch) and with a greater revision, and a removal only if the store's history tells of it. Anything else means
that the store has lost data: then nothing at all is applied, and `regressed` says why, until the store is repaired
or `adopt` is called.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec

from cluster.documents import SCHEMA_VERSION, ModelDocument, decode_document, encode
from cluster.errors import InvalidRequest, ModelNotFound, StoreUnavailable
from cluster.store import VersionStore
from cluster.store.commits import REMOVE

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a poll applied, as names of models; true if that is anything."""

    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the file holds, after a line with its SHA-256."""

    epoch: str
    at_s: float
    documents: list[str]
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class _News:
    """What one look at the store found. `lost` says why it can not be believed."""

    documents: dict[str, ModelDocument] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)
    lost: str = ""


class Follower:
    """Follows `store`; `file` (None: no file) is written whenever something was applied.

    `poll` may be called from any thread, one at a time does its work. Everything else only reads what it left.

    Args:
        now: Wall clock seconds, because the age of what the file holds outlives a process.
    """

    def __init__(self, store: VersionStore, file: Path | None, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._file = file
        self._now = now
        self._lock = threading.Lock()
        self._documents: Mapping[str, ModelDocument] = MappingProxyType({})
        self._epoch = ""
        self._at_s = -math.inf
        self._started = False
        self._unsaved = False
        self._up = False
        self._regressed = ""
        self._unreadable: Mapping[str, str] = MappingProxyType({})

    @property
    def documents(self) -> Mapping[str, ModelDocument]:
        """The desired state in force, by model: a mapping that never changes, another one after every change."""
        return self._documents

    @property
    def up(self) -> bool:
        """Whether the store answered the last poll."""
        return self._up

    @property
    def age_s(self) -> float:
        """Seconds since the store last confirmed `documents`; infinite if it never has."""
        return max(0.0, self._now() - self._at_s)

    @property
    def regressed(self) -> str:
        """Why what the store says now is not applied; "" while it is."""
        return self._regressed

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Models whose newest document this Prism cannot read, with the reason; the last good one stays in force."""
        return self._unreadable

    @property
    def epoch(self) -> str:
        """The data set that is followed; "" before one was seen."""
        return self._epoch

    def poll(self) -> Changes:
        """Look at the store once and apply what is new. The first call also reads the file.

        Never raises StoreUnavailable: `up` says so.
        """
        with self._lock:
            before = self._documents
            if not self._started:
                self._load()
                self._started = True
            self._look()
            self._save()
            return _difference(before, self._documents)

    def adopt(self) -> Changes:
        """Take the store as it is now for true, whatever was known before. Raises: StoreUnavailable."""
        with self._lock:
            before = self._documents
            epoch = self._store.epoch()
            news = self._read({}, epoch)
            if news.lost:
                raise StoreUnavailable(f"the version store changed while it was read: {news.lost}")
            self._started = True
            self._epoch = epoch
            self._apply({}, news)
            self._save()
            return _difference(before, self._documents)

    def _look(self) -> None:
        try:
            epoch = self._store.epoch()
            if self._epoch and epoch != self._epoch:
                news = _News(lost=f"it is another data set ({epoch[:8]}, not {self._epoch[:8]}): it was emptied")
            else:
                news = self._read(self._documents, epoch)
        except StoreUnavailable:
            self._up = False
            return
        self._up = True
        if news.lost:
            if not self._regressed:
                log.error("the version store has lost data, nothing of it is applied: %s", news.lost)
            self._regressed = news.lost
            return
        self._epoch = epoch
        self._apply(self._documents, news)

    def _read(self, known: Mapping[str, ModelDocument], epoch: str) -> _News:
        """What differs from `known`. Only models whose revision differs are read. Raises: StoreUnavailable."""
        revisions = self._store.revisions()
        documents: dict[str, ModelDocument] = {}
        unreadable: dict[str, str] = {}
        for model, revision in revisions.items():
            have = known[model].revision if model in known else 0
            if revision < have:
                return _News(lost=f"{model} went back from revision {have} to {revision}")
            if revision == have:
                continue
            try:
                document = self._store.read(model)
            except ModelNotFound:
                continue  # removed a moment ago: the next poll sees that
            except InvalidRequest as error:
                unreadable[model] = error.message
                continue
            if document.epoch != epoch or document.revision < revision:
                return _News(lost=f"{model} is of another data set than the rest of the store")
            documents[model] = document
        removed = tuple(model for model in known if model not in revisions)
        for model in removed:
            lost = self._lost(model, known[model].revision)
            if lost:
                return _News(lost=lost)
        return _News(documents, removed, unreadable)

    def _lost(self, model: str, have: int) -> str:
        """Why the model is gone without having been removed; "" if it was removed."""
        try:
            entries = self._store.history(model, 20)
        except ModelNotFound:
            return f"{model} is gone, and so is its history"
        except InvalidRequest as error:
            return f"{model} is gone, and its history cannot be read: {error.message}"
        if any(entry.operation == REMOVE and entry.revision > have for entry in entries):
            return ""
        return f"{model} is gone, but its history knows of no removal after revision {have}"

    def _apply(self, known: Mapping[str, ModelDocument], news: _News) -> None:
        self._up, self._regressed, self._at_s = True, "", self._now()
        for model in news.unreadable.keys() - self._unreadable.keys():
            log.error("the newest document of %s cannot be read: %s", model, news.unreadable[model])
        self._unreadable = MappingProxyType(news.unreadable)
        after = {model: document for model, document in known.items() if model not in news.removed} | news.documents
        if news.documents or news.removed or known is not self._documents:
            self._documents = MappingProxyType(after)
            self._unsaved = True
        elif self._file is not None and not self._file.exists():
            self._unsaved = True

    def _load(self) -> None:
        if self._file is None or not self._file.exists():
            return
        try:
            kept = _parse(self._file.read_bytes())
            documents = [decode_document(raw) for raw in kept.documents]
        except (OSError, ValueError, InvalidRequest) as error:
            log.error("what was kept of the version store cannot be used: %s: %s", self._file, error)
            return
        self._documents = MappingProxyType({document.name: document for document in documents})
        self._epoch, self._at_s = kept.epoch, kept.at_s

    def _save(self) -> None:
        if self._file is None or not self._unsaved:
            return
        kept = _Kept(self._epoch, self._at_s, [encode(document).decode() for document in self._documents.values()])
        payload = msgspec.json.encode(asdict(kept))
        try:
            _write(self._file, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
            self._unsaved = False
        except OSError as error:
            log.error("what is known of the version store cannot be kept: %s: %s", self._file, error)


def _difference(before: Mapping[str, ModelDocument], after: Mapping[str, ModelDocument]) -> Changes:
    if before is after:
        return Changes()
    changed = tuple(sorted(model for model, document in after.items() if before.get(model) != document))
    return Changes(changed, tuple(sorted(model for model in before if model not in after)))


def _parse(raw: bytes) -> _Kept:
    """Raises: ValueError if the checksum or the form is wrong."""
    checksum, _, payload = raw.partition(b"\n")
    if checksum.decode("ascii", "replace") != hashlib.sha256(payload).hexdigest():
        raise ValueError("the checksum does not match")
    kept = msgspec.json.decode(payload, type=_Kept)
    if kept.schema_version != SCHEMA_VERSION:
        raise ValueError(f"schema_version: this Prism reads {SCHEMA_VERSION}, got {kept.schema_version}")
    return kept


def _write(file: Path, raw: bytes) -> None:
    """Atomically; several readers may keep the same file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
