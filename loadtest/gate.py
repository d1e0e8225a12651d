"""Whether a run says anything about the server, and whether the server kept its objective.

A generator that was itself late, starved or full measures itself. Such a run is invalid, whatever its figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loadtest.objective import Objective, samples_needed

EXIT_CODES = {"ok": 0, "missed": 1, "invalid": 2}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a generator may do and still be believed.

    Its lag, at p99, may be `lag_s` or `lag_share` of the objective's limit, whichever is more.
    """

    lag_s: float = 0.005
    lag_share: float = 0.10
    cpu: float = 0.70  # of one core, per process: tail latencies suffer long before a core is full
    sent_share: float = 0.99

    def max_lag_s(self, objective: Objective) -> float:
        return max(self.lag_s, self.lag_share * (objective.limit_s or 0.0))


@dataclass(frozen=True, slots=True)
class Generation:
    """What the generators did over the measured part of a run."""

    loop: str
    offered: int
    sent: int
    dropped: int
    lag_p99_s: float | None
    cpu: float | None  # busiest process
    lost_processes: int = 0
    planned_s: float = 0.0
    stopped_s: float | None = None  # when the run was stopped early


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ok`, `missed` (the objective) or `invalid` (the run). `reasons` say why, `notes` what else to know."""

    status: Literal["ok", "missed", "invalid"]
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]


def flaws(generation: Generation, objective: Objective, thresholds: Thresholds) -> list[str]:
    """Why the run cannot be believed; empty if it can."""
    found = []
    if generation.offered == 0:
        found.append(
            "no request was due" if generation.stopped_s is None else "it was stopped before anything was measured"
        )
    if generation.lost_processes:
        found.append(f"{generation.lost_processes} generator process(es) left no samples")
    if generation.dropped:
        found.append(
            f"{generation.dropped} arrivals were dropped: max_in_flight was reached, or the generator fell far behind"
        )
    if generation.loop == "open":
        if generation.sent < thresholds.sent_share * generation.offered:
            found.append(
                f"the generator sent {generation.sent} of {generation.offered} arrivals: it cannot reach this rate"
            )
        limit_s = thresholds.max_lag_s(objective)
        if generation.lag_p99_s is not None and generation.lag_p99_s > limit_s:
            found.append(
                f"requests were sent late: p99 {generation.lag_p99_s * 1e3:.1f} ms, at most {limit_s * 1e3:.1f} ms"
            )
    if generation.cpu is not None and generation.cpu > thresholds.cpu:
        found.append(
            f"a generator process used {generation.cpu:.0%} of a core, at most {thresholds.cpu:.0%}: "
            "use more processes or another machine"
        )
    return found


def judge(
    generation: Generation, missed: list[str], objective: Objective, thresholds: Thresholds | None = None
) -> Verdict:
    """The verdict over a run that missed `missed` of its objective."""
    found = flaws(generation, objective, thresholds or Thresholds())
    notes = []
    if generation.stopped_s is not None:
        notes.append(f"stopped after {generation.stopped_s:.1f} s of {generation.planned_s:g} s")
    if generation.loop == "closed":
        notes.append("closed loop: clients wait for answers, so a stall of the server hardly shows in the percentiles")
    for bound in objective.latency:
        needed = samples_needed(bound.percentile)
        if generation.offered < needed:
            notes.append(
                f"p{bound.percentile:g} rests on {generation.offered} requests; {needed} are needed to be 99 % sure"
            )
    if found:
        return Verdict("invalid", tuple(found), (*missed, *notes))
    return Verdict("missed" if missed else "ok", tuple(missed), tuple(notes))
