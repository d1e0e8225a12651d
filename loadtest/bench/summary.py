"""Medians over rounds, and how they stand to the targets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from loadtest.bench.result import Measurement, Point

Figure = Literal["rps", "cpu_ms", "p50_ms"]


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant at one point: medians over `rounds` rounds, and the least and most of what matters.

    Milliseconds where the name says so. `net_cpu_ms` is without what the server uses when nobody asks.
    """

    contestant: str
    work: str
    point: Point
    rounds: int
    rps: float
    rps_least: float
    rps_most: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    cpu_ms: float
    cpu_ms_least: float
    idle_cpu_ms: float
    cpu_ms_by_kind: dict[str, float]
    server_cores: float
    generator_cores: float
    other_share: float
    lag_p99_ms: float | None
    failed: int

    @property
    def net_cpu_ms(self) -> float:
        return max(0.0, self.cpu_ms - self.idle_cpu_ms)


@dataclass(frozen=True, slots=True)
class Target:
    """What Prism is to reach at a point; `figure` at most `bound`, or at least where `at_least`."""

    work: str
    format: str
    connections: int
    figure: Figure
    bound: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


# Two cores, one gateway, one replica with one thread.
TARGETS = (
    Target("T", "raw", 64, "cpu_ms", 0.035),
    Target("T", "binary", 64, "cpu_ms", 0.050),
    Target("T", "raw", 64, "rps", 35_000, at_least=True),
    Target("T", "raw", 1, "p50_ms", 0.30),
    Target("M", "raw", 32, "rps", 560, at_least=True),
    Target("M", "raw", 32, "cpu_ms", 2.15),
    Target("E", "raw", 32, "cpu_ms", 0.60),
)


def summarise(measurements: Iterable[Measurement]) -> tuple[Row, ...]:
    """One row per contestant, work and point, in the order they were first measured."""
    groups: dict[tuple[str, str, Point], list[Measurement]] = defaultdict(list)
    for m in measurements:
        groups[m.contestant, m.work, m.point].append(m)
    return tuple(_row(*key, found) for key, found in groups.items())


def verdicts(rows: Sequence[Row], contestant: str = "prism") -> tuple[tuple[Target, float, bool], ...]:
    """The targets that were measured, with the value reached and whether it is good enough."""
    found = []
    for target in TARGETS:
        for row in rows:
            point = Point(target.format, target.connections)
            if (row.contestant, row.work, row.point) == (contestant, target.work, point):
                value: float = getattr(row, target.figure)
                found.append((target, value, target.met(value) and row.failed == 0))
    return tuple(found)


def _row(contestant: str, work: str, point: Point, found: list[Measurement]) -> Row:
    def of_latency(name: str) -> float:
        values = [getattr(m.latency, name) for m in found]
        return 1e3 * median(value for value in values if value is not None) if any(values) else float("nan")

    kinds = sorted({kind for m in found for kind in m.cpu_ms_by_kind})
    lags = [m.lag_p99_s for m in found if m.lag_p99_s is not None]
    return Row(
        contestant=contestant,
        work=work,
        point=point,
        rounds=len(found),
        rps=median(m.rps for m in found),
        rps_least=min(m.rps for m in found),
        rps_most=max(m.rps for m in found),
        p50_ms=of_latency("p50_s"),
        p90_ms=of_latency("p90_s"),
        p99_ms=of_latency("p99_s"),
        p999_ms=of_latency("p999_s"),
        max_ms=of_latency("max_s"),
        cpu_ms=median(m.cpu_ms for m in found),
        cpu_ms_least=min(m.cpu_ms for m in found),
        idle_cpu_ms=median(m.idle_cpu_ms for m in found),
        cpu_ms_by_kind={kind: median(m.cpu_ms_by_kind.get(kind, 0.0) for m in found) for kind in kinds},
        server_cores=median(m.server_cores for m in found),
        generator_cores=median(m.generator_cores for m in found),
        other_share=median(m.other_share for m in found),
        lag_p99_ms=1e3 * median(lags) if lags else None,
        failed=sum(m.failed for m in found),
    )
