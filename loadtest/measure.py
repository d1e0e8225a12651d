"""Figures from samples: pure, unrounded, and with every request accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import NDArray

from cluster.latency import LatencyBound
from loadtest.arrivals import Times
from loadtest.objective import Objective
from loadtest.samples import Outcome, Samples
from loadtest.schedule import Window


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of `count` values, in seconds; all None for no values. Each is a value that occurred."""

    count: int
    mean_s: float | None = None
    p50_s: float | None = None
    p90_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    p999_s: float | None = None
    max_s: float | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """offered = answered + failed + dropped. `errors` divides failed and dropped by kind."""

    offered: int
    answered: int
    failed: int
    dropped: int
    good: int  # answered within the objective's limit
    errors: dict[str, int]
    versions: dict[str, int]  # answers per version

    @property
    def error_share(self) -> float:
        return (self.failed + self.dropped) / self.offered if self.offered else 0.0


@dataclass(frozen=True, slots=True)
class Timeline:
    """One entry per second of the run, warm-up included; None where there was nothing to measure."""

    t_s: tuple[float, ...]
    offered: tuple[int, ...]
    completed: tuple[int, ...]  # answers that arrived in this second
    failed: tuple[int, ...]  # of those due in this second
    p50_s: tuple[float | None, ...]  # of those due in this second
    p99_s: tuple[float | None, ...]
    in_flight: tuple[int, ...]
    versions: dict[str, tuple[int, ...]]  # answers per version


def percentiles(values: Times) -> Percentiles:
    if not len(values):
        return Percentiles(0)
    p50, p90, p95, p99, p999 = (
        float(v) for v in np.quantile(values, [0.5, 0.9, 0.95, 0.99, 0.999], method="inverted_cdf")
    )
    return Percentiles(len(values), float(np.mean(values)), p50, p90, p95, p99, p999, float(np.max(values)))


def counts(samples: Samples, limit_s: float | None) -> Counts:
    """How the requests of `samples` ended. Without a limit every answer is good."""
    ok = samples.ok
    outcomes = np.bincount(samples.outcome, minlength=len(Outcome))
    errors = {o.label: int(outcomes[o]) for o in Outcome if o is not Outcome.OK and outcomes[o]}
    by_version = np.bincount(samples.version[ok], minlength=len(samples.versions))
    return Counts(
        offered=len(samples),
        answered=int(outcomes[Outcome.OK]),
        failed=int(len(samples) - outcomes[Outcome.OK] - outcomes[Outcome.DROPPED]),
        dropped=int(outcomes[Outcome.DROPPED]),
        good=int(np.count_nonzero(ok if limit_s is None else ok & (samples.latency_s < limit_s))),
        errors=errors,
        versions={name: int(n) for name, n in zip(samples.versions, by_version, strict=True) if n},
    )


def within(samples: Samples, window: Window) -> Samples:
    """The requests that were due in `window`."""
    first, last = np.searchsorted(samples.due_s, [window.start_s, window.end_s])
    inside = np.zeros(len(samples), dtype=bool)
    inside[first:last] = True
    return samples.only(inside)


def judged_until(samples: Samples, stopped_s: float, patience_s: float) -> float:
    """Up to which second a run that was stopped can be judged: requests that its end cut off within `patience_s` of
    their due time say nothing about the server."""
    cut_off = np.equal(samples.outcome, int(Outcome.UNANSWERED)) & (samples.due_s > stopped_s - patience_s)
    return min(stopped_s, float(np.min(samples.due_s[cut_off], initial=np.inf)))


def completed_in(samples: Samples, window: Window) -> int:
    """Answers that arrived in `window`, whenever they were due."""
    return int(np.count_nonzero(samples.ok & (samples.done_s >= window.start_s) & (samples.done_s < window.end_s)))


def bound_value(samples: Samples, bound: LatencyBound) -> float:
    """The percentile that `bound` is about over all requests; one without an answer counts as infinitely slow."""
    if not len(samples):
        return float("inf")
    latency = np.where(samples.ok, samples.latency_s, np.inf)
    return float(np.quantile(latency, bound.percentile / 100, method="inverted_cdf"))


def misses(samples: Samples, objective: Objective) -> list[str]:
    """What `samples` do not keep of the objective, in words; nothing for no samples, which the gate refuses."""
    if not len(samples):
        return []
    found = []
    for bound in objective.latency:
        value = bound_value(samples, bound)
        if not value < bound.limit_s:
            shown = f"{value * 1e3:.1f} ms" if np.isfinite(value) else "not reached: too many requests had no answer"
            found.append(f"{bound}: {shown}")
    share = counts(samples, None).error_share
    if share > objective.max_error_share:
        found.append(f"errors<={objective.max_error_share * 100:g}%: {share * 100:.2f} %")
    return found


def timeline(samples: Samples, end_s: float) -> Timeline:
    """The run second by second."""
    seconds = max(ceil(end_s - 1e-9), 1)
    edges = np.arange(seconds + 1, dtype=np.float64)
    ok = samples.ok
    p50: list[float | None] = []
    p99: list[float | None] = []
    firsts = np.searchsorted(samples.due_s, edges)
    latency_s = samples.latency_s
    for first, last in pairwise(firsts):
        figures = percentiles(latency_s[first:last][ok[first:last]])
        p50.append(figures.p50_s)
        p99.append(figures.p99_s)
    sent = np.sort(samples.sent_s[~np.isnan(samples.sent_s)])
    # A request that was never answered stays open.
    done = np.sort(samples.done_s[~np.isnan(samples.done_s)])
    ends = edges[1:]
    return Timeline(
        t_s=tuple(edges[:-1].tolist()),
        offered=_histogram(samples.due_s, edges),
        completed=_histogram(samples.done_s[ok], edges),
        failed=_histogram(samples.due_s[~ok], edges),
        p50_s=tuple(p50),
        p99_s=tuple(p99),
        in_flight=tuple((np.searchsorted(sent, ends) - np.searchsorted(done, ends)).tolist()),
        versions={
            name: _histogram(samples.done_s[ok & (samples.version == i)], edges)
            for i, name in enumerate(samples.versions)
            if name
        },
    )


def mean_cpu(workers: Sequence[Sequence[float]], windows: Sequence[Window]) -> float | None:
    """CPU share (1.0 is one core) of the busiest generator process over the measured windows; None if unknown."""
    means = []
    for shares in workers:
        measured = [
            share
            for second, share in enumerate(shares)
            if any(window.measured and window.start_s <= second + 0.5 < window.end_s for window in windows)
        ]
        if measured:
            means.append(sum(measured) / len(measured))
    return max(means, default=None)


def distribution(values: Times, points: int = 200) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Values and the share of values above each, evenly spaced on a logarithmic scale of that share."""
    if not len(values):
        return (), ()
    ordered = np.sort(values)
    shares = np.geomspace(1.0, 1.0 / len(ordered), min(points, len(ordered)))
    at = np.clip(np.ceil((1 - shares) * len(ordered)).astype(int) - 1, 0, len(ordered) - 1)
    return tuple(ordered[at].tolist()), tuple(shares.tolist())


def shares(versions: Mapping[str, int]) -> dict[str, float]:
    """Counts as shares of their sum."""
    total = sum(versions.values())
    return {name: n / total for name, n in versions.items()} if total else {}


def _histogram(values: Times, edges: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.histogram(values[~np.isnan(values)], bins=edges)[0])
