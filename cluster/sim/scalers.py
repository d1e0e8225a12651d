"""Who decides in a simulation: production's `ScalePolicy`, or a fixed number."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
