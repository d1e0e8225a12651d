"""How a reader keeps up with the version store: what it has read stays in force until something newer is known.

The store may be gone, or come back empty or older than it was. What was read last is kept in memory and in a file, so
that a reader that starts while the store is down has something to go by. A change is believed only from the same data
set (epoch) and with a greater revision, and a removal only if the store's history tells of it. Anything else means
that the store has lost data: then nothing at all is applied, and `regressed` says why, until the store is repaired or
an operator has sanctioned it as it is. Each sanction is heeded once: its mark is kept with what was read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from cluster.documents import ModelDocument
from cluster.errors import InvalidRequest, ModelNotFound, StoreUnavailable
from cluster.store import VersionStore
from cluster.store.commits import REMOVE
from cluster.store.kept import Kept, read_kept, write_kept

log = logging.getLogger(__name__)

FILES = ("controller.json", "routes.json")  # in the home: what the controller and the gateways have read last


@dataclass(frozen=True, slots=True)
class Changes:
    """What a poll applied, as names of models; true if that is anything.

    `adopted`: a new sanction was heeded, so the store may know nothing of what was written to it before.
    """

    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    adopted: bool = False

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class _News:
    """What one look at the store found in its data set `epoch`.

    `lost` says why it cannot be believed. With a `mark`, `documents` are all there are, else those that changed.
    """

    epoch: str = ""
    documents: dict[str, ModelDocument] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)
    lost: str = ""
    mark: int = 0


class Follower:
    """Follows `store`; `file` (None: no file) is written whenever something was applied.

    `poll` may be called from any thread, one at a time does its work. Everything else only reads what it left.

    Args:
        now: Unix time, for the file.
    """

    def __init__(self, store: VersionStore, file: Path | None, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._file = file
        self._now = now
        self._lock = threading.Lock()
        self._documents: Mapping[str, ModelDocument] = MappingProxyType({})
        self._epoch = ""
        self._mark = 0
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
            mark = self._mark
            self._look()
            self._save()
            return _difference(before, self._documents, adopted=self._mark > mark)

    def _look(self) -> None:
        try:
            news = self._news()
        except StoreUnavailable:
            self._up = False
            return
        self._up = True
        if news.lost:
            if not self._regressed:
                log.error("the version store has lost data, nothing of it is applied: %s", news.lost)
            self._regressed = news.lost
        else:
            self._apply(news)

    def _news(self) -> _News:
        """What one look at the store finds. Raises: StoreUnavailable."""
        mark, epoch = self._store.sanctioned(), self._store.epoch()
        if mark > self._mark:
            return replace(self._read({}, epoch), mark=mark)
        if self._documents and epoch != self._epoch:
            return _News(lost=f"it is another data set ({epoch[:8]}, not {self._epoch[:8]}): it was emptied")
        return self._read(self._documents, epoch)

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
        return _News(epoch, documents, removed, unreadable)

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

    def _apply(self, news: _News) -> None:
        self._regressed, self._epoch = "", news.epoch
        for model in news.unreadable.keys() - self._unreadable.keys():
            log.error("the newest document of %s cannot be read: %s", model, news.unreadable[model])
        self._unreadable = MappingProxyType(news.unreadable)
        sanctioned = news.mark > self._mark
        stay = {
            model: document
            for model, document in self._documents.items()
            if (model in news.unreadable if sanctioned else model not in news.removed)
        }
        if sanctioned or news.documents or news.removed:
            self._mark = max(self._mark, news.mark)
            self._documents = MappingProxyType(stay | news.documents)
            self._unsaved = True
        elif self._file is not None and not self._file.exists():
            self._unsaved = True

    def _load(self) -> None:
        if self._file is None or not self._file.exists():
            return
        try:
            self._know(read_kept(self._file))
        except InvalidRequest as error:
            log.error("what was kept of the version store cannot be used: %s", error.message)

    def _know(self, kept: Kept) -> None:
        self._documents = MappingProxyType({document.name: document for document in kept.documents})
        self._epoch, self._mark = kept.epoch, kept.mark

    def _save(self) -> None:
        if self._file is None or not self._unsaved:
            return
        try:
            write_kept(self._file, Kept(self._epoch, self._now(), tuple(self._documents.values()), self._mark))
            self._unsaved = False
        except OSError as error:
            log.error("what is known of the version store cannot be kept: %s: %s", self._file, error)


def regression(store: VersionStore, kept: Kept) -> str:
    """Why a reader that knows `kept` applies nothing of what the store says, or "". Raises: StoreUnavailable."""
    reader = Follower(store, None)
    reader._know(kept)
    return reader._news().lost


def _difference(before: Mapping[str, ModelDocument], after: Mapping[str, ModelDocument], adopted: bool) -> Changes:
    if before is after:
        return Changes(adopted=adopted)
    changed = tuple(sorted(model for model, document in after.items() if before.get(model) != document))
    return Changes(changed, tuple(sorted(model for model in before if model not in after)), adopted)
