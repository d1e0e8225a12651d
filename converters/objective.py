"""What `prism optimize` is to reach, and which configuration reaches it: decided in virtual time.

A configuration is a precision, a number of threads and a batch size. Requests of one row arrive at random (Poisson) at
one replica, through production's gateway and batching policies (`cluster.sim.path`), with the batch times that were
measured. The highest rate at which the objective still holds, per thread, is what a configuration is worth. Only the
model's time is counted: what a gateway spends on a request is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.costs import CostCurve
from cluster.errors import InvalidRequest
from cluster.latency import LatencyBound, latency_bound
from cluster.policy.batch import BatchPolicy
from cluster.sim.path import Path, PathSettings

LEAST_REQUESTS, MOST_REQUESTS = 3000, 10_000
LIMITS = 10  # arrivals go on for so many times the objective's limit, as far as MOST_REQUESTS allow
WARM_UP = 0.1  # of the requests, until the queue has found its length
MOST_SHARE = 0.95  # of the greatest throughput; closer to it a queue grows longer than any simulation
HALVINGS = 7
MARGIN = 0.05
LEAST_SHARE = 0.02  # of the greatest throughput; a configuration that fails at this rate always fails


def parse_objective(text: str) -> LatencyBound:
    """`p99<20ms`. Raises: InvalidRequest."""
    bound = latency_bound(text)
    if bound is None:
        raise InvalidRequest(f"objective: expected a percentile and a time, as p99<20ms, got {text!r}")
    return bound


@dataclass(frozen=True, slots=True)
class Configuration:
    """How one artifact could be served."""

    target: str
    threads: int
    max_rows: int


@dataclass(frozen=True, slots=True)
class Result:
    """What one configuration reaches.

    Attributes:
        rate: Requests per second that one replica answers within the objective; 0 if it cannot at any rate.
        latency_s: The objective's percentile at that rate.
        one_row_s: Seconds of a call with one row.
    """

    configuration: Configuration
    rate: float
    latency_s: float
    one_row_s: float

    @property
    def rate_per_thread(self) -> float:
        return self.rate / self.configuration.threads

    def to_json(self) -> dict[str, Any]:
        c = self.configuration
        return {
            "target": c.target,
            "threads": c.threads,
            "max_rows": c.max_rows,
            "requests_per_s": self.rate,
            "requests_per_s_per_thread": self.rate_per_thread,
            "latency_s": self.latency_s,
            "one_row_s": self.one_row_s,
        }


def batch_sizes(curve: CostCurve, max_rows: int) -> tuple[int, ...]:
    """Batch sizes worth trying: those that were measured."""
    return tuple(rows for rows in curve.rows if rows <= max_rows) or (1,)


def evaluate(configuration: Configuration, curve: CostCurve, objective: LatencyBound, seed: int = 0) -> Result:
    """The highest rate within the objective, found by halving between none and the greatest throughput.

    Every configuration meets the same arrivals, scaled to the rate, so that differences are not those of chance.
    """
    most = curve.rows_per_s(configuration.max_rows)
    one_row_s = curve.run_s(1)
    first = most * LEAST_SHARE
    latency_s = percentile_at(first, configuration.max_rows, curve, objective, seed)
    if latency_s > objective.limit_s:
        return Result(configuration, 0.0, latency_s, one_row_s)
    low, low_latency, high = first, latency_s, most * MOST_SHARE
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        latency_s = percentile_at(middle, configuration.max_rows, curve, objective, seed)
        if latency_s <= objective.limit_s:
            low, low_latency = middle, latency_s
        else:
            high = middle
    return Result(configuration, low, low_latency, one_row_s)


def percentile_at(rate: float, max_rows: int, curve: CostCurve, objective: LatencyBound, seed: int) -> float:
    """The objective's percentile of latency, in seconds, at `rate` requests per second; inf where requests fail."""
    draw = np.random.default_rng(seed)
    requests = int(np.clip(rate * objective.limit_s * LIMITS, LEAST_REQUESTS, MOST_REQUESTS))
    due_s = np.cumsum(draw.standard_exponential(requests)) / rate
    policy = BatchPolicy(max_rows=max_rows, max_queue_rows=max(1024, max_rows), costs=curve)
    path = Path(due_s, PathSettings(batch=policy), np.random.default_rng(seed + 1))
    path.start(0.0, 0.0)
    path.advance(float(due_s[-1]) + requests * curve.run_s(1) + 1.0)
    return float(np.percentile(path.latency_s[int(requests * WARM_UP) :], objective.percentile, method="higher"))


def choose(results: Sequence[Result]) -> Result | None:
    """The configuration with the highest rate per thread, or None if none holds the objective.

    Within `MARGIN` of it, which measurements do not tell apart, the earliest in `results` is taken: what comes first
    is nearer to the source.
    """
    best = max((result.rate_per_thread for result in results), default=0.0)
    return next((r for r in results if r.rate > 0 and r.rate_per_thread >= best * (1 - MARGIN)), None)


def reasons(results: Sequence[Result], best: Result | None, objective: LatencyBound) -> Mapping[Configuration, str]:
    """Why each configuration was kept or lost."""
    return {result.configuration: _reason(result, best, objective) for result in results}


def _reason(result: Result, best: Result | None, objective: LatencyBound) -> str:
    if result.rate == 0:
        if result.one_row_s > objective.limit_s:
            return f"one row alone takes {result.one_row_s * 1e3:.3g} ms"
        return f"p{objective.percentile:g} is {result.latency_s * 1e3:.3g} ms even when hardly anything arrives"
    if best is None or result is best:
        return "kept"
    share = result.rate_per_thread / best.rate_per_thread
    if share >= 1 - MARGIN:
        return f"within {MARGIN:.0%} of what was kept"
    return f"{1 - share:.0%} fewer requests per thread within {objective}"
