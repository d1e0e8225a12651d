"""What replicas measure of their load, and what it adds up to for a version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

METRICS_INTERVAL_S = 0.5  # how often a replica sends its statistics
LOOK_BACK_S = 1.0  # over how long they are averaged
LEAST_S = 0.1  # rates over less say nothing
SPEED_KEEPS = 0.9  # share of the past that a new reading of a replica's speed leaves
SPEED_LEAST, SPEED_MOST = 0.05, 2.0


@dataclass(frozen=True, slots=True)
class Counters:
    """A replica's totals since it began, read at `at_s` on any clock.

    Attributes:
        busy_s: Seconds its engine computed, the running batch included.
        ended_s: Seconds that the batches that have ended took.
        expected_s: Seconds they should have taken by the artifact's cost curve.
    """

    at_s: float
    rows_in: int = 0
    rows_done: int = 0
    busy_s: float = 0.0
    ended_s: float = 0.0
    expected_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """One replica's load; the fields' names are those of the statistics it reports.

    Attributes:
        rows_per_s: Rows that arrived.
        done_per_s: Rows that were answered.
        queue_rows: Rows waiting in its queue.
        backlog_rows: Rows waiting for the version at all gateways, as they told this replica.
        backlog_per_s: Rows by which that grew each second; negative while it shrinks.
        busy_share: Share of time its engine computed.
        capacity_rows_per_s: Its best steady rate: the profile's, corrected by how long batches really take here;
            0 if the artifact was never measured.
        start_s: How long it took to start.
    """

    rows_per_s: float = 0.0
    done_per_s: float = 0.0
    queue_rows: float = 0.0
    backlog_rows: float = 0.0
    backlog_per_s: float = 0.0
    busy_share: float = 0.0
    capacity_rows_per_s: float = 0.0
    start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """A version's load, summed over its replicas, except `busy_share`, which is their mean (0..1).

    Attributes:
        replicas: Replicas that reported.
        target: Replicas asked for until now.
        rows_per_s: Rows that came to the version: what replicas were given and what waits for them besides.
        done_per_s: Rows that were answered.
        queue_rows: Rows waiting at replicas.
        backlog_rows: Rows waiting at gateways.
        busy_share: Share of time the engines computed.
        capacity_rows_per_s: One replica's best steady rate; 0 if it was never measured.
        start_s: Seconds from ordering a replica until it answers; 0 if unknown.
        wanted: Requests are waiting for a version without replicas.
    """

    replicas: int
    target: int
    rows_per_s: float = 0.0
    done_per_s: float = 0.0
    queue_rows: float = 0.0
    backlog_rows: float = 0.0
    busy_share: float = 0.0
    capacity_rows_per_s: float = 0.0
    start_s: float = 0.0
    wanted: bool = False


class LoadMeter:
    """Turns a replica's totals into rates: each reading covers the time since the one before.

    `capacity_rows_per_s` is the profile's and may be set anew when batches may be larger or smaller than before.
    """

    def __init__(self, begun: Counters, capacity_rows_per_s: float, start_s: float) -> None:
        self._before = begun
        self._backlog_rows: int | None = None  # it did not begin with this replica
        self.capacity_rows_per_s = capacity_rows_per_s
        self._start_s = start_s
        self._rates = (0.0, 0.0, 0.0, 0.0)
        self._ended_s = self._expected_s = 0.0

    def read(self, now: Counters, queue_rows: int, backlog_rows: int) -> ReplicaLoad:
        """The load since the last reading, or what that said if it was just now."""
        before = self._before
        elapsed_s = now.at_s - before.at_s
        if elapsed_s >= LEAST_S:
            self._before = now
            grown = backlog_rows - self._backlog_rows if self._backlog_rows is not None else 0
            self._rates = (
                (now.rows_in - before.rows_in) / elapsed_s,
                (now.rows_done - before.rows_done) / elapsed_s,
                grown / elapsed_s,
                min(1.0, max(0.0, (now.busy_s - before.busy_s) / elapsed_s)),
            )
            self._backlog_rows = backlog_rows
            self._ended_s = SPEED_KEEPS * self._ended_s + now.ended_s - before.ended_s
            self._expected_s = SPEED_KEEPS * self._expected_s + now.expected_s - before.expected_s
        rows_per_s, done_per_s, backlog_per_s, busy_share = self._rates
        return ReplicaLoad(
            rows_per_s=rows_per_s,
            done_per_s=done_per_s,
            queue_rows=float(queue_rows),
            backlog_rows=float(backlog_rows),
            backlog_per_s=backlog_per_s,
            busy_share=busy_share,
            capacity_rows_per_s=self.capacity_rows_per_s * self._speed(),
            start_s=self._start_s,
        )

    def _speed(self) -> float:
        """How fast batches run here, next to what was measured on the artifact."""
        if self._ended_s <= 0 or self._expected_s <= 0:
            return 1.0
        return min(SPEED_MOST, max(SPEED_LEAST, self._expected_s / self._ended_s))


def load_of(reports: Sequence[ReplicaLoad], target: int, wanted: bool) -> Load:
    """A version's load from its running replicas' reports.

    Every gateway tells every replica its whole backlog, so the largest figure is the backlog, not the sum; what it
    grows by is part of what comes, as gateways give busy replicas no more than these can do. Capacity is the mean: a
    replica on a slower machine counts as what it is.
    """
    count = len(reports)
    if not count:
        return Load(replicas=0, target=target, wanted=wanted)
    return Load(
        replicas=count,
        target=target,
        rows_per_s=max(0.0, sum(r.rows_per_s + r.backlog_per_s / count for r in reports)),
        done_per_s=sum(r.done_per_s for r in reports),
        queue_rows=sum(r.queue_rows for r in reports),
        backlog_rows=max(r.backlog_rows for r in reports),
        busy_share=sum(r.busy_share for r in reports) / count,
        capacity_rows_per_s=sum(r.capacity_rows_per_s for r in reports) / count,
        start_s=max(r.start_s for r in reports),
        wanted=wanted,
    )
