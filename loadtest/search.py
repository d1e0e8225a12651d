"""Finding the knee: the highest rate at which the objective is kept, confirmed with arrivals not seen before.

`SearchPolicy` decides which rate to try next from the trials so far and nothing else; `find_max` runs the trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path

import msgspec

from cluster.errors import InvalidRequest
from loadtest.arrivals import Poisson
from loadtest.objective import samples_needed
from loadtest.page import KeyFigure, Page
from loadtest.report import HEADLINES, latency_by_rate, ms
from loadtest.result import LoadResult
from loadtest.runs import Progress, run
from loadtest.scenario import Scenario
from loadtest.schedule import Phase

MAX_TRIAL_S = 60.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate, tried once."""

    rate: float
    seed: int
    passed: bool
    valid: bool = True
    why: str = ""
    goodput_rps: float = 0.0
    p99_s: float | None = None


@dataclass(frozen=True, slots=True)
class Try:
    """Next: run this rate; `purpose` for people."""

    rate: float
    purpose: str


@dataclass(frozen=True, slots=True)
class Found:
    """The search is over. `rate` is None if even the lowest rate failed; `limited_by` says what the next rate up
    failed on: the server, the generator, or the bound set on the search."""

    rate: float | None
    limited_by: str


@dataclass(frozen=True, slots=True)
class SearchPolicy:
    """Double until a rate fails, bisect to `precision`, then confirm the best with `confirmations` more trials; a rate
    that fails once has failed, and confirming goes on one step of `precision` below."""

    start_rate: float
    max_rate: float = 100_000.0
    precision: float = 0.05
    confirmations: int = 3
    max_trials: int = 40

    def decide(self, trials: Sequence[Trial]) -> Try | Found:
        bad = min((t.rate for t in trials if not t.passed), default=None)
        good = max((t.rate for t in trials if t.passed and (bad is None or t.rate < bad)), default=None)
        limited_by = self._limit(trials, bad)
        if len(trials) >= self.max_trials:
            return Found(good, f"{limited_by}; stopped after {len(trials)} trials")
        if bad is None:
            if good is None:
                return Try(self.start_rate, "first")
            if good < self.max_rate:
                return Try(min(good * 2, self.max_rate), "doubling")
        elif good is None:
            lower = bad / 2
            return Try(lower, "halving") if lower >= self.start_rate / 64 else Found(None, limited_by)
        elif bad / good > 1 + self.precision + 1e-9:
            confirming = any(sum(t.rate == other.rate for t in trials) > 1 for other in trials)
            if not confirming:
                return Try(sqrt(good * bad), "bisection")
            return Try(max(bad / (1 + self.precision), good), "stepping down")
        assert good is not None
        if sum(t.rate == good for t in trials) <= self.confirmations:
            return Try(good, "confirmation")
        return Found(good, limited_by)

    def _limit(self, trials: Sequence[Trial], bad: float | None) -> str:
        if bad is None:
            return f"the search's own bound of {self.max_rate:g}/s"
        return "the server" if all(t.valid for t in trials if t.rate == bad) else "the generator"


@dataclass(frozen=True, slots=True)
class KneeResult:
    """What a search found: `goodput_rps` is the least and `p99_s` the worst of all trials at `rate`."""

    host: str
    objective: str
    rate: float | None
    goodput_rps: float | None
    p99_s: float | None
    limited_by: str
    stable: bool  # latency had settled before the first trial
    trials: tuple[Trial, ...]

    def write(self, file: Path) -> None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(self)), indent=1) + b"\n")


def find_max(
    scenario: Scenario,
    host: str,
    out: Path | None = None,
    on_trial: Callable[[Try], None] | None = None,
    policy: SearchPolicy | None = None,
) -> KneeResult:
    """The highest Poisson rate at which `host` keeps the scenario's objective, starting from the scenario's rate.

    With `out`, `knee.json` and `knee.html` are written there. Raises: as `run`; InvalidRequest without a bound on
    latency.
    """
    limit_s = scenario.objective.limit_s
    if limit_s is None:
        raise InvalidRequest("objective: the search needs a bound on latency, such as p99<50ms")
    policy = policy or SearchPolicy(scenario.rate)
    stable = warm_up(scenario, host)
    trials: list[Trial] = []
    results: list[LoadResult] = []
    while isinstance(step := policy.decide(trials), Try):
        if on_trial:
            on_trial(step)
        seed = scenario.seed + len(trials)
        result = run(_trial(scenario, step.rate, seed), host, on_progress=_overloaded(step.rate, limit_s))
        results.append(result)
        trials.append(judge_trial(step.rate, seed, result, limit_s))
    at_best = [t for t in trials if t.rate == step.rate]
    found = KneeResult(
        host=host,
        objective=str(scenario.objective),
        rate=step.rate,
        goodput_rps=min((t.goodput_rps for t in at_best), default=None),
        p99_s=max((t.p99_s for t in at_best if t.p99_s is not None), default=None),
        limited_by=step.limited_by,
        stable=stable,
        trials=tuple(trials),
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        found.write(out / "knee.json")
        knee_page(found, results, scenario).write(out / "knee.html")
    return found


def warm_up(scenario: Scenario, host: str, attempts: int = 4) -> bool:
    """Load at half the first rate until the median of three windows in a row agrees within 10 %; whether it did."""
    windows = tuple(Phase(f"window {i}", 3.0, Poisson(0.5)) for i in range(3))
    for attempt in range(attempts):
        result = run(replace(scenario, phases=windows, events=(), seed=scenario.seed + 1000 + attempt), host)
        medians = [phase.p50_s for phase in result.phases if phase.p50_s is not None]
        if len(medians) == 3 and max(medians) <= 1.1 * min(medians):
            return True
    return False


def judge_trial(rate: float, seed: int, result: LoadResult, limit_s: float) -> Trial:
    """A trial passes if the run is valid, the objective is kept and no backlog was left at its end."""
    reasons = list(result.verdict.reasons)
    end_s = result.total.start_s + result.total.duration_s
    left = result.timeline.in_flight[min(int(end_s), len(result.timeline.in_flight)) - 1]
    if left > open_limit(rate, limit_s):
        reasons.append(f"{left} requests were still open at the end")
    if result.total.achieved_rps < 0.99 * result.total.offered_rps and left > 0.01 * result.total.counts.offered:
        reasons.append(f"only {result.total.achieved_rps:.1f}/s of {result.total.offered_rps:.1f}/s were completed")
    return Trial(
        rate=rate,
        seed=seed,
        passed=not reasons,
        valid=result.verdict.status != "invalid",
        why="; ".join(reasons),
        goodput_rps=result.total.goodput_rps,
        p99_s=result.total.p99_s,
    )


def open_limit(rate: float, limit_s: float) -> float:
    """More open requests than this mean a backlog: by Little's law, `rate * limit_s` are open on average when each
    takes as long as the objective allows."""
    return max(2.0 * rate * limit_s, 16.0)


def knee_page(found: KneeResult, results: Sequence[LoadResult], scenario: Scenario) -> Page:
    page = Page("Highest rate within the objective", f"{found.host}, {found.objective}")
    if found.rate is None:
        page.verdict("bad", "No rate kept the objective", [f"limited by {found.limited_by}"])
    else:
        page.verdict("good", f"{found.rate:.1f} requests a second", [f"the next rate up failed on {found.limited_by}"])
        page.figures(
            [
                KeyFigure("goodput", f"{found.goodput_rps:.1f}/s", "least of all confirmations"),
                KeyFigure("p99", ms(found.p99_s), "worst of all confirmations"),
                KeyFigure("trials", str(len(found.trials)), "Poisson arrivals, a new seed each"),
            ]
        )
    if not found.stable:
        page.verdict("warn", "Latency had not settled within 10 % when the search began")
    page.section("Trials")
    if results:
        page.chart(
            latency_by_rate([replace(r.total, name=f"{r.load.rate:g}") for r in results], scenario.objective.limit_s)
        )
    page.table(
        ["rate", "seed", "requests", "goodput/s", "p50", "p99", "sent late p99", "verdict", "why"],
        [
            [
                f"{t.rate:.1f}/s",
                t.seed,
                r.total.counts.offered,
                f"{t.goodput_rps:.1f}",
                ms(r.total.p50_s),
                ms(t.p99_s),
                ms(r.total.lag.p99_s),
                "kept" if t.passed else HEADLINES[r.verdict.status][1],
                t.why,
            ]
            for t, r in zip(found.trials, results, strict=True)
        ],
    )
    if results:
        machine = results[0].machine
        page.section("Measured from")
        page.pairs({"CPU": f"{machine.cpu}, {machine.cores} cores", "system": machine.system, "Prism": machine.prism})
    return page


def _trial(scenario: Scenario, rate: float, seed: int) -> Scenario:
    """Long enough that the bounded percentile rests on enough requests, where that does not take too long."""
    needed = max(samples_needed(bound.percentile) for bound in scenario.objective.latency)
    duration_s = min(max(scenario.duration_s, 1.05 * needed / rate), MAX_TRIAL_S)
    return replace(
        scenario, rate=rate, seed=seed, loop="open", events=(), phases=(Phase("trial", duration_s, Poisson()),)
    )


def _overloaded(rate: float, limit_s: float) -> Callable[[Progress], bool]:
    """Stop a trial as soon as a backlog shows: it has failed, and the server should not have to work it off."""
    bound = 2 * open_limit(rate, limit_s)
    return lambda progress: progress.in_flight > bound
