"""How many replicas a version should have.

`ScalePolicy` is given what the replicas measured since it was last asked and what it remembered, and answers with a
count, a reason and what to remember. Up at once, down only after demand has stayed lower for a while.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

FAR = 1e6  # more replicas than anybody has


@dataclass(frozen=True, slots=True)
class Load:
    """A version's load, summed over its replicas, except `busy_share`, which is their mean (0..1).

    Attributes:
        replicas: Replicas that reported.
        target: Replicas asked for until now.
        rows_per_s: Rows that arrived.
        done_per_s: Rows that were answered.
        queue_rows: Rows waiting at replicas.
        backlog_rows: Rows waiting at gateways.
        busy_share: Share of time the engines computed.
        capacity_rows_per_s: One replica's best steady rate by its profile; 0 if it was never measured.
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
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """What the policy remembers between decisions. `lower_since_s`: since when demand has been below the target."""

    lower_since_s: float | None = None
    peak: int = 0  # the highest demand since then
    idle_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Replicas wanted, why, and what to remember."""

    replicas: int
    reason: str
    memory: Memory


@dataclass(frozen=True, slots=True)
class ScalePolicy:
    """Replicas so that predicted utilisation stays at or below `target_utilisation` and queues drain in `drain_s`.

    Attributes:
        min_replicas: Never fewer, 0 included.
        max_replicas: Never more.
        target_utilisation: Share of its capacity a replica may be given.
        drain_s: A waiting queue should be worked off within this time.
        down_after_s: Demand must have stayed lower for so long before a replica goes.
        idle_after_s: With min_replicas 0, the last replica goes after so long without a row.
        margin: Demand must be lower than the target by this share of a replica, so that noise cannot make it flap.
    """

    min_replicas: int
    max_replicas: int
    target_utilisation: float = 0.7
    drain_s: float = 2.0
    down_after_s: float = 30.0
    idle_after_s: float = 60.0
    margin: float = 0.1

    def decide(self, load: Load, memory: Memory, now_s: float) -> Verdict:
        """The count to have from now on. Pure."""
        if load.replicas == 0 or load.target == 0:
            return self._asleep(load, now_s)
        capacity = self.capacity(load)
        waiting = load.queue_rows + load.backlog_rows
        demand = load.rows_per_s / self.target_utilisation + max(0.0, waiting - 2 * load.replicas) / self.drain_s
        needed = (
            min(demand / capacity, FAR) if capacity > 0 else load.busy_share * load.replicas / self.target_utilisation
        )
        figures = (
            f"{load.rows_per_s:.0f} rows/s in, {waiting:.0f} waiting, "
            f"{capacity:.0f} rows/s per replica, busy {load.busy_share:.0%}"
        )
        if ceil(needed) > load.target:
            return Verdict(self._bound(ceil(needed), 1), f"up: {figures}", Memory())
        return self._lower(load, memory, now_s, needed, waiting, figures)

    def capacity(self, load: Load) -> float:
        """Rows a second one replica can answer: as measured while it was busy enough to tell, else by its profile."""
        if load.busy_share >= 0.3 and load.done_per_s > 0:
            measured = load.done_per_s / load.replicas / load.busy_share
            return min(measured, load.capacity_rows_per_s) if load.capacity_rows_per_s else measured
        return load.capacity_rows_per_s

    def _asleep(self, load: Load, now_s: float) -> Verdict:
        if load.wanted:
            return Verdict(self._bound(max(1, load.target), 1), "up: requests wait for a version at zero", Memory())
        return Verdict(self._bound(load.target, self.min_replicas), "no replica has reported yet", Memory())

    def _lower(self, load: Load, memory: Memory, now_s: float, needed: float, waiting: float, figures: str) -> Verdict:
        idle = load.rows_per_s == 0 and waiting == 0
        idle_since_s = (memory.idle_since_s if memory.idle_since_s is not None else now_s) if idle else None
        if self.min_replicas == 0 and idle_since_s is not None and now_s - idle_since_s >= self.idle_after_s:
            return Verdict(0, f"down: no request for {self.idle_after_s:.0f} s", Memory())
        demand = max(1, ceil(needed + self.margin))
        if demand >= load.target:
            return Verdict(self._bound(load.target, 1), f"keep: {figures}", Memory(idle_since_s=idle_since_s))
        since_s = memory.lower_since_s if memory.lower_since_s is not None else now_s
        peak = max(memory.peak, demand)
        if now_s - since_s >= self.down_after_s:
            lowered = self._bound(peak, 1)
            return Verdict(lowered, f"down: {figures}", Memory(idle_since_s=idle_since_s))
        return Verdict(
            self._bound(load.target, 1),
            f"keep: lower since {now_s - since_s:.0f} s, {figures}",
            Memory(since_s, peak, idle_since_s),
        )

    def _bound(self, replicas: int, least: int) -> int:
        return max(self.min_replicas, min(max(replicas, least), self.max_replicas))
