"""What happened to every request: recorded by each load generator, merged afterwards, nothing rounded or averaged."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals import Times

COLUMNS = ("due_s", "sent_s", "done_s", "outcome", "version", "call")


class Outcome(IntEnum):
    """How a request ended. Only OK is an answer; DROPPED was never sent, by the generator's own limit."""

    OK = 0
    TIMEOUT = 1  # the generator stopped waiting
    HTTP_429 = 2
    HTTP_503 = 3
    HTTP_504 = 4
    HTTP_5XX = 5
    HTTP_4XX = 6
    CONNECTION = 7  # refused, reset, or closed without an answer
    UNANSWERED = 8  # still open when the run ended
    DROPPED = 9

    @property
    def label(self) -> str:
        return self.name.removeprefix("HTTP_").lower()


def outcome_of(status: int) -> Outcome:
    """The outcome of an answer with HTTP `status`."""
    if 200 <= status < 300:
        return Outcome.OK
    exact = {429: Outcome.HTTP_429, 503: Outcome.HTTP_503, 504: Outcome.HTTP_504}
    return exact.get(status, Outcome.HTTP_5XX if status >= 500 else Outcome.HTTP_4XX)


class Recorder:
    """One generator's rows. Cheap to append to: it runs between requests."""

    def __init__(self) -> None:
        self._due_s, self._sent_s, self._done_s = array("d"), array("d"), array("d")
        self._outcome, self._version, self._call = array("b"), array("h"), array("i")
        self._versions: dict[str, int] = {"": 0}
        self._counts = [0] * len(Outcome)

    def __len__(self) -> int:
        return len(self._due_s)

    def add(self, due_s: float, sent_s: float, done_s: float, outcome: Outcome, version: str, call: int) -> None:
        """Seconds since the start of the run; `sent_s` and `done_s` are NaN for what was never sent."""
        self._due_s.append(due_s)
        self._sent_s.append(sent_s)
        self._done_s.append(done_s)
        self._outcome.append(outcome)
        self._counts[outcome] += 1
        self._version.append(self._versions.setdefault(version, len(self._versions)))
        self._call.append(call)

    def count(self, outcome: Outcome) -> int:
        return self._counts[outcome]

    def write(self, file: Path, about: dict[str, Any]) -> None:
        """Write all rows, with `about` as JSON beside them. The file appears whole or not at all."""
        temporary = file.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.savez(
                stream,
                due_s=np.array(self._due_s),
                sent_s=np.array(self._sent_s),
                done_s=np.array(self._done_s),
                outcome=np.array(self._outcome, dtype=np.int8),
                version=np.array(self._version, dtype=np.int16),
                call=np.array(self._call, dtype=np.int32),
                versions=np.array(list(self._versions)),
                about=np.array(json.dumps(about)),
            )
        temporary.replace(file)


@dataclass(frozen=True, slots=True)
class Samples:
    """All requests of a run in the order they were due; times in seconds since its start.

    `version[i]` indexes `versions`, whose entry 0 is "" for a request without an answer that named one.
    """

    due_s: Times
    sent_s: Times
    done_s: Times
    outcome: NDArray[np.int8]
    version: NDArray[np.int16]
    call: NDArray[np.int32]
    versions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.due_s)

    @property
    def ok(self) -> NDArray[np.bool_]:
        return np.equal(self.outcome, int(Outcome.OK))

    @property
    def latency_s(self) -> Times:
        """From the moment a request was due to its answer; NaN for what was never sent."""
        return self.done_s - self.due_s

    @property
    def service_s(self) -> Times:
        """From the moment a request was sent to its answer."""
        return self.done_s - self.sent_s

    @property
    def lag_s(self) -> Times:
        """How late the generator sent a request; never below 0, as a timer may fire a little early."""
        return np.maximum(self.sent_s - self.due_s, 0.0)

    def only(self, which: NDArray[np.bool_]) -> Samples:
        columns = {name: getattr(self, name)[which] for name in COLUMNS}
        return Samples(**columns, versions=self.versions)


def read_samples(file: Path) -> tuple[Samples, dict[str, Any]]:
    """One generator's rows and what it said about itself."""
    with np.load(file, allow_pickle=False) as arrays:
        samples = Samples(**{name: arrays[name] for name in COLUMNS}, versions=tuple(arrays["versions"].tolist()))
        return samples, json.loads(str(arrays["about"]))


def merge(parts: Sequence[Samples]) -> Samples:
    """All rows of all generators, in the order they were due."""
    versions = ["", *sorted({name for part in parts for name in part.versions if name}, key=_version_order)]
    index = {name: i for i, name in enumerate(versions)}
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS if name != "version"}
    columns["version"] = np.concatenate(
        [np.array([index[name] for name in part.versions], dtype=np.int16)[part.version] for part in parts]
    )
    order = np.argsort(columns["due_s"], kind="stable")
    return Samples(**{name: column[order] for name, column in columns.items()}, versions=tuple(versions))


def _version_order(name: str) -> tuple[int, str]:
    return (int(name) if name.isdecimal() else 1 << 31, name)
