"""What came of a simulated version: seconds outside the objective, what it cost, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cluster.sim.path import Path, Times

LATE_SHARE = 0.01  # of the requests due in a second: more, and its p99 is outside
FLAP_S = 60.0


@dataclass(frozen=True, slots=True)
class Objective:
    """A request should be answered within `latency_s`; a second in which more than 1 % are not is outside."""

    latency_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """A decision that changed the number of replicas."""

    at_s: float
    before: int
    after: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Instant:
    """Replicas that answer and that are held (starting and draining ones included), and rows that wait anywhere."""

    at_s: float
    ready: int
    held: int
    target: int
    waiting_rows: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One version's run.

    Attributes:
        seconds: How many whole seconds it lasted.
        outside: Seconds outside the objective, by number.
        replica_seconds: Sum over replicas from being ordered until gone.
        changes: Decisions that changed the target.
        instants: The state once a second.
        rates: Requests due per second.
        late: Share of them that were late, per second.
        requests: All of them.
        failed: Of these refused or expired.
        p99_s: Over all requests; inf if more than 1 % failed.
    """

    seconds: int
    outside: tuple[int, ...]
    replica_seconds: float
    changes: tuple[Change, ...]
    instants: tuple[Instant, ...]
    rates: tuple[int, ...]
    late: tuple[float, ...]
    requests: int
    failed: int
    p99_s: float

    @property
    def flaps(self) -> int:
        """Changes of direction within a minute of each other."""
        steps = [(change.at_s, change.after > change.before) for change in self.changes]
        return sum(up != was_up and at_s - was_s < FLAP_S for (was_s, was_up), (at_s, up) in pairwise(steps))


def outcome(
    path: Path,
    seconds: int,
    objective: Objective,
    replica_seconds: float,
    changes: list[Change],
    instants: list[Instant],
) -> Outcome:
    """Of a path that was advanced past all of its requests."""
    slot = np.minimum(path.due_s.astype(np.int64), seconds - 1)
    rates = np.bincount(slot, minlength=seconds)
    late = np.bincount(slot, weights=path.latency_s > objective.latency_s, minlength=seconds)
    share: Times = np.divide(late, rates, out=np.zeros(seconds), where=rates > 0)
    outside: NDArray[np.int64] = np.flatnonzero(share > LATE_SHARE)
    count = len(path.latency_s)
    return Outcome(
        seconds=seconds,
        outside=tuple(outside.tolist()),
        replica_seconds=replica_seconds,
        changes=tuple(changes),
        instants=tuple(instants),
        rates=tuple(rates.tolist()),
        late=tuple(share.tolist()),
        requests=count,
        failed=int(np.isinf(path.latency_s).sum()),
        p99_s=float(np.sort(path.latency_s)[max(0, -(-count * 99 // 100) - 1)]) if count else 0.0,
    )
