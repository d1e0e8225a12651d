"""The version store in memory: for tests and for what lives no longer than its process."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.documents import AuditEntry, ModelDocument, VersionStatus
from cluster.errors import ModelNotFound
from cluster.names import check_model
from cluster.store.commits import KEPT_HISTORY, REMOVE, check_limit, check_texts, lost_race, next_mark, pack, unpack
from cluster.store.nodes import MemoryNodes


@dataclass(slots=True)
class _Entry:
    revision: int
    operation: str
    by: str
    at_s: float
    reason: str
    kept: bytes


@dataclass(slots=True)
class _Model:
    revision: int = 0
    kept: bytes | None = None  # None: it was removed
    audit: deque[_Entry] = field(default_factory=lambda: deque(maxlen=KEPT_HISTORY))
    statuses: dict[str, VersionStatus] = field(default_factory=dict)


class MemoryStore:
    """Implements `cluster.store.VersionStore`. Documents are kept as bytes, so that no caller can change them."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._epoch = uuid.uuid4().hex
        self._models: dict[str, _Model] = {}
        self._changed = threading.Condition()
        self._mark = 0
        self._commits = 0
        self._seen = 0
        self._nodes = MemoryNodes(self._wake)

    @property
    def nodes(self) -> MemoryNodes:
        return self._nodes

    def epoch(self) -> str:
        return self._epoch

    def models(self) -> tuple[str, ...]:
        return tuple(sorted(self.revisions()))

    def revisions(self) -> dict[str, int]:
        with self._changed:
            return {name: model.revision for name, model in self._models.items() if model.kept is not None}

    def read(self, model: str) -> ModelDocument:
        with self._changed:
            found = self._models.get(check_model(model))
            if found is None or found.kept is None:
                raise ModelNotFound(f"there is no model {model!r}")
            return unpack(found.kept, found.revision, self._epoch)

    def swap(self, new: ModelDocument, operation: str, by: str, reason: str = "", *, above: int = 0) -> ModelDocument:
        check_texts(operation, by, reason)
        kept = pack(new)
        with self._changed:
            model = self._current(new)
            self._commit(model, kept, operation, by, reason, above)
            model.kept = kept
            self._models[new.name] = model
            return unpack(kept, model.revision, self._epoch)

    def remove(self, document: ModelDocument, by: str, reason: str = "") -> None:
        check_texts(REMOVE, by, reason)
        with self._changed:
            model = self._current(document)
            if model.kept is None:
                raise lost_race(document.name, document.revision, self._last(model), document)
            self._commit(model, model.kept, REMOVE, by, reason)
            model.kept = None
            model.statuses = {}

    def history(self, model: str, limit: int = 100) -> tuple[AuditEntry, ...]:
        check_limit(limit)
        with self._changed:
            found = self._models.get(check_model(model))
            if found is None:
                raise ModelNotFound(f"there never was a model {model!r}")
            return tuple(self._shown(entry) for entry in list(found.audit)[: -limit - 1 : -1])

    def statuses(self, model: str) -> dict[str, VersionStatus]:
        with self._changed:
            found = self._models.get(check_model(model))
            return dict(found.statuses) if found else {}

    def report(self, model: str, statuses: dict[str, VersionStatus]) -> None:
        with self._changed:
            found = self._models.get(check_model(model))
            if found is not None and found.kept is not None:
                found.statuses = dict(statuses)

    def sanctioned(self) -> int:
        return self._mark

    def sanction(self) -> int:
        with self._changed:
            self._mark = next_mark(self._mark, self._now())
        self._wake()
        return self._mark

    def wait(self, timeout_s: float) -> bool:
        with self._changed:
            seen = self._seen
            woken = self._changed.wait_for(lambda: self._commits != seen, timeout_s)
            self._seen = self._commits
            return woken

    def durability_warnings(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        pass

    def _current(self, document: ModelDocument) -> _Model:
        """The model, if `document` may replace what it holds. Raises: StaleRevision."""
        model = self._models.get(document.name, _Model())
        revision = model.revision if model.kept is not None else 0
        if document.revision != revision or document.epoch not in ("", self._epoch):
            raise lost_race(document.name, document.revision, self._last(model), document)
        return model

    def _commit(self, model: _Model, kept: bytes, operation: str, by: str, reason: str, above: int = 0) -> None:
        model.revision = max(model.revision, above) + 1
        model.audit.append(_Entry(model.revision, operation, by, self._now(), reason, kept))
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._commits += 1
            self._changed.notify_all()

    def _last(self, model: _Model) -> AuditEntry | None:
        return self._shown(model.audit[-1]) if model.audit else None

    def _shown(self, entry: _Entry) -> AuditEntry:
        document = unpack(entry.kept, entry.revision, self._epoch)
        return AuditEntry(entry.revision, entry.operation, entry.by, entry.at_s, entry.reason, document)
