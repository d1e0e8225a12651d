"""One version's request path in virtual time: a gateway that coalesces, replicas that batch.

Where a micro-batch goes is asked of `cluster.policy.dispatch`, what a replica runs next of its `BatchPolicy`: the
policies of production, not copies. Simulated are only what they act upon: time, queues and how long a batch takes.
Every request has one row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest
from cluster.policy.batch import BatchPolicy, Waiting
from cluster.policy.dispatch import better_held, least_loaded

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PathSettings:
    """What surrounds the policies.

    Attributes:
        batch: Every replica's policy; its curve is also what a batch really takes, times `slowdown` and noise.
        in_flight: Micro-batches per replica.
        max_waiting_rows: Rows that may wait in the gateway; more are refused.
        deadline_s: Requests that wait in the gateway for longer are failed.
        hop_s: What gateway and wire add to every answer.
        slowdown: How many times longer a batch takes here than where it was measured.
        noise: Standard deviation of the logarithm of a batch's time.
    """

    batch: BatchPolicy
    in_flight: int = 2
    max_waiting_rows: int = 4096
    deadline_s: float = 30.0
    hop_s: float = 0.001
    slowdown: float = 1.0
    noise: float = 0.05

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("batch.costs", bool(self.batch.costs.rows), "measured points"),
            ("in_flight", self.in_flight >= 1, "at least 1"),
            ("deadline_s", self.deadline_s > 0, "above 0"),
            ("hop_s", self.hop_s >= 0, "0 or more"),
            ("slowdown", self.slowdown > 0, "above 0"),
            ("noise", self.noise >= 0, "0 or more"),
        ):
            if not ok:
                raise InvalidRequest(f"path.{name}: expected {expected}")


class SimReplica:
    """A replica from the moment it is ordered until it is gone. `ready_s` is inf while it waits for resources."""

    __slots__ = (
        "batches",
        "busy_s",
        "calls",
        "draining",
        "exclusive",
        "expected_s",
        "id",
        "outstanding_rows",
        "queue",
        "queue_rows",
        "ready",
        "rows_done",
        "rows_in",
        "running",
        "running_since_s",
        "silent",
        "started_s",
        "wake_s",
    )

    def __init__(self, id: int, started_s: float) -> None:
        self.id = id
        self.started_s = started_s
        self.ready = False
        self.draining = False
        self.silent = False
        self.exclusive = False
        self.calls: dict[int, list[int]] = {}  # micro-batch -> requests
        self.outstanding_rows = 0
        self.queue_rows = 0  # as it last told the gateway
        self.queue: dict[int, Waiting] = {}
        self.running: tuple[int, ...] = ()
        self.running_since_s = 0.0
        self.wake_s = inf
        self.rows_in = 0
        self.rows_done = 0
        self.batches = 0
        self.busy_s = 0.0
        self.expected_s = 0.0  # what the batches should have taken by the curve

    def busy_total_s(self, now_s: float) -> float:
        """Seconds computed since the start, the running batch included."""
        return self.busy_s + (now_s - self.running_since_s if self.running else 0.0)


Kind = Literal["ready", "done", "wake"]


class Path:
    """Advances from event to event. `latency_s` is inf for requests that were refused or failed."""

    def __init__(self, due_s: Times, settings: PathSettings, rng: np.random.Generator) -> None:
        self.settings = settings
        self.due_s = due_s
        self.latency_s: Times = np.full(len(due_s), inf)
        self.replicas: dict[int, SimReplica] = {}  # ordered and not gone
        self.waiting: deque[int] = deque()
        self.refused = 0
        self.expired = 0
        self._due: Sequence[float] = due_s.tolist()
        self._next = 0
        self._rng = rng
        self._draws: list[float] = []
        self._events: list[tuple[float, int, Kind, SimReplica]] = []
        self._seq = 0
        self._last_id = 0
        self._members: list[SimReplica] = []  # that have been ready and are not gone
        self._blocked = False  # no replica has a free slot until something happens

    def start(self, now_s: float, start_s: float) -> None:
        """Order a replica that is ready after `start_s`."""
        self._last_id += 1
        replica = SimReplica(self._last_id, now_s)
        self.replicas[replica.id] = replica
        self._push(now_s + start_s, "ready", replica)

    def stop(self, replica: SimReplica) -> None:
        """Send it nothing more; it is gone once it has answered."""
        replica.draining = True
        if not replica.calls:
            self._gone(replica)

    def advance(self, until_s: float) -> None:
        """Everything that happens before `until_s`."""
        due, count = self._due, len(self._due)
        while True:
            event_s = self._events[0][0] if self._events else inf
            arrival_s = due[self._next] if self._next < count else inf
            if min(event_s, arrival_s) >= until_s:
                return
            if arrival_s <= event_s:
                if len(self.waiting) >= self.settings.max_waiting_rows:
                    self.refused += 1
                else:
                    self.waiting.append(self._next)
                self._next += 1
                if not self._blocked:
                    self._dispatch(arrival_s)
                continue
            at_s, _, kind, replica = heappop(self._events)
            if kind == "ready":
                if replica.id in self.replicas:
                    replica.ready = True
                    self._members.append(replica)
            elif kind == "done":
                self._finish(replica, at_s)
            elif replica.wake_s <= at_s and not replica.running:
                self._run(replica, at_s)
            self._dispatch(at_s)

    def ready(self) -> list[SimReplica]:
        """Replicas that answer."""
        return [replica for replica in self.replicas.values() if replica.ready and not replica.draining]

    def starting(self) -> list[SimReplica]:
        """Replicas that were ordered and do not answer yet."""
        return [replica for replica in self.replicas.values() if not replica.ready and not replica.draining]

    @property
    def in_flight_rows(self) -> int:
        return sum(replica.outstanding_rows for replica in self.replicas.values())

    def _dispatch(self, now_s: float) -> None:
        settings, waiting = self.settings, self.waiting
        batch_rows = settings.batch.max_rows
        self._blocked = False
        while waiting:
            if self._due[waiting[0]] + settings.deadline_s < now_s:
                waiting.popleft()
                self.expired += 1
                continue
            replica = least_loaded(self._members, settings.in_flight)
            if replica is None:
                self._blocked = True
                return
            ahead_s = settings.batch.costs.run_s(min(replica.outstanding_rows, batch_rows))
            if better_held(replica.outstanding_rows, len(waiting), batch_rows, ahead_s):
                return
            self._send(replica, [waiting.popleft() for _ in range(min(batch_rows, len(waiting)))], now_s)

    def _send(self, replica: SimReplica, requests: list[int], now_s: float) -> None:
        self._seq += 1
        rows = len(requests)
        replica.calls[self._seq] = requests
        replica.outstanding_rows += rows
        replica.rows_in += rows
        deadline_s = self._due[requests[-1]] + self.settings.deadline_s
        replica.queue[self._seq] = Waiting(self._seq, rows, now_s, deadline_s)
        if not replica.running:
            self._run(replica, now_s)

    def _run(self, replica: SimReplica, now_s: float) -> None:
        decision = self.settings.batch.decide(list(replica.queue.values()), now_s)
        for unit in decision.expire:
            del replica.queue[unit]
            self.expired += len(self._close(replica, unit))
        if not decision.run:
            replica.wake_s = decision.wake_s
            if replica.queue:
                self._push(decision.wake_s, "wake", replica)
            return
        rows = sum(replica.queue.pop(unit).rows for unit in decision.run)
        expected_s = self.settings.batch.costs.run_s(rows)
        replica.running, replica.running_since_s = decision.run, now_s
        replica.expected_s += expected_s
        self._push(now_s + expected_s * self.settings.slowdown * self._noise(), "done", replica)

    def _finish(self, replica: SimReplica, now_s: float) -> None:
        replica.busy_s += now_s - replica.running_since_s
        replica.batches += 1
        for unit in replica.running:
            requests = self._close(replica, unit)
            replica.rows_done += len(requests)
            for request in requests:
                self.latency_s[request] = now_s - self._due[request] + self.settings.hop_s
        replica.running = ()
        replica.queue_rows = sum(unit.rows for unit in replica.queue.values())
        if replica.queue:
            self._run(replica, now_s)
        if replica.draining and not replica.calls:
            self._gone(replica)

    def _gone(self, replica: SimReplica) -> None:
        del self.replicas[replica.id]
        if replica.ready:
            self._members.remove(replica)

    @staticmethod
    def _close(replica: SimReplica, unit: int) -> list[int]:
        requests = replica.calls.pop(unit)
        replica.outstanding_rows -= len(requests)
        return requests

    def _noise(self) -> float:
        if not self._draws:
            self._draws = np.exp(self._rng.normal(0.0, self.settings.noise, 1024)).tolist()
        return self._draws.pop()

    def _push(self, at_s: float, kind: Kind, replica: SimReplica) -> None:
        self._seq += 1
        heappush(self._events, (at_s, self._seq, kind, replica))
