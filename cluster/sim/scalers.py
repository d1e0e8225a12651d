"""Who decides in a simulation: production's `ScalePolicy`, a fixed number, or one who sees what comes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from cluster.policy.load import load_of
from cluster.policy.scale import Memory, ScalePolicy
from cluster.sim.path import Path
from cluster.sim.reports import Reports, Timing


class PolicyScaler:
    """`ScalePolicy` behind the statistics that Serve would show it."""

    def __init__(self, policy: ScalePolicy, capacity_rows_per_s: float, timing: Timing | None = None) -> None:
        self._policy = policy
        self._reports = Reports(timing or Timing(), capacity_rows_per_s)
        self._memory = Memory()

    def observe(self, path: Path, now_s: float) -> None:
        self._reports.observe(path, now_s)

    def decide(self, path: Path, target: int, most: int, now_s: float) -> tuple[int, str]:
        wanted = not path.ready() and bool(path.waiting)
        load = load_of(self._reports.loads(now_s), target, wanted)
        verdict = replace(self._policy, max_replicas=most).decide(load, self._memory, now_s)
        self._memory = verdict.memory
        return verdict.replicas, verdict.reason


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always so many."""

    replicas: int

    def observe(self, path: Path, now_s: float) -> None:
        """Nothing to measure."""

    def decide(self, path: Path, target: int, most: int, now_s: float) -> tuple[int, str]:
        return min(self.replicas, most), "fixed"


class Prompt:
    """What no policy can beat that holds only what the present load needs: it sees the coming second's requests.

    When these need more replicas, at `utilisation` of `capacity_rows_per_s` each, it orders as many as there may be,
    and `keep_s` after the last such rise it is back at what the second with the most of that time needed. What it costs
    is no measure of anything; its seconds outside the objective are those that replicas spend on starting.
    """

    def __init__(self, capacity_rows_per_s: float, utilisation: float = 0.7, keep_s: float = 60.0) -> None:
        self._rows_per_s = capacity_rows_per_s * utilisation
        self._keep_s = keep_s
        self._needs: list[tuple[float, int]] = []  # (when, how many), of the last `keep_s`
        self._rose_s = -keep_s

    def observe(self, path: Path, now_s: float) -> None:
        """It has seen all."""

    def decide(self, path: Path, target: int, most: int, now_s: float) -> tuple[int, str]:
        first, last = np.searchsorted(path.due_s, (now_s, now_s + 1.0))
        needed = min(most, max(1, ceil((last - first) / self._rows_per_s)))
        self._needs = [(at_s, count) for at_s, count in self._needs if now_s - at_s <= self._keep_s]
        held = max((count for _, count in self._needs), default=target)
        self._needs.append((now_s, needed))
        if needed > held:
            self._rose_s = now_s
        return (most, "more is coming") if now_s - self._rose_s < self._keep_s else (max(needed, held), "as before")
