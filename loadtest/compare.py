"""Two runs side by side, with ratios, and which differences are more than noise.

Requests that are close in time share queues, batches and pauses, so their latencies are not independent. Whole seconds
are therefore resampled, not requests: a difference counts only if the ratio's 95 % interval leaves out 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest
from loadtest.arrivals import Times
from loadtest.page import Page
from loadtest.plots import tail
from loadtest.report import PERCENTILE_MARKS, ms
from loadtest.result import LoadResult
from loadtest.samples import COLUMNS, Samples

RESAMPLES = 500
MEASURES = ("p50", "p90", "p99", "mean")


@dataclass(frozen=True, slots=True)
class Difference:
    """B over A for one measure; the interval is None without samples to resample."""

    measure: str
    a: float | None
    b: float | None
    ratio: float | None
    low: float | None = None
    high: float | None = None

    @property
    def judgement(self) -> str:
        if self.low is None or self.high is None:
            return "unknown"
        return "noise" if self.low <= 1 <= self.high else "B is higher" if self.low > 1 else "B is lower"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`warnings` say why the two may not be comparable."""

    a: str
    b: str
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]


def compare(a: Path, b: Path) -> Comparison:
    """Compare two `result.json`; samples are looked for beside them. Raises: InvalidRequest."""
    first, second = LoadResult.read(a), LoadResult.read(b)
    one, two = _latencies_by_second(a, first), _latencies_by_second(b, second)
    intervals = ratio_intervals(one, two) if one and two else {}
    differences = [
        Difference(name, x, y, y / x if x and y is not None else None)
        for name, x, y in (
            ("offered/s", first.total.offered_rps, second.total.offered_rps),
            ("achieved/s", first.total.achieved_rps, second.total.achieved_rps),
            ("goodput/s", first.total.goodput_rps, second.total.goodput_rps),
            ("failed", float(first.total.counts.failed), float(second.total.counts.failed)),
        )
    ]
    for name in MEASURES:
        x, y = getattr(first.total.latency, f"{name}_s"), getattr(second.total.latency, f"{name}_s")
        low, high = intervals.get(name, (None, None))
        differences.append(Difference(name, x, y, y / x if x and y is not None else None, low, high))
    return Comparison(str(a), str(b), tuple(differences), tuple(_warnings(first, second)))


def ratio_intervals(a: list[Times], b: list[Times], seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of B's measure over A's, from latencies grouped by the second they were due in."""
    rng = np.random.default_rng(seed)
    ratios: dict[str, list[float]] = {name: [] for name in MEASURES}
    for _ in range(RESAMPLES):
        x, y = _measures(_resampled(a, rng)), _measures(_resampled(b, rng))
        for name in MEASURES:
            ratios[name].append(y[name] / x[name])
    return {
        name: (float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))) for name, values in ratios.items()
    }


def comparison_page(found: Comparison) -> Page:
    first, second = LoadResult.read(Path(found.a)), LoadResult.read(Path(found.b))
    page = Page("Two load tests compared", f"A: {found.a}   B: {found.b}")
    if found.warnings:
        page.verdict("warn", "Compare with care", found.warnings)
    page.table(["measure", "A", "B", "B / A", "95 % interval", "judgement"], rows(found))
    page.section("Latency")
    page.chart(tail({"A": first.distribution, "B": second.distribution}, first.load.limit_s, PERCENTILE_MARKS))
    page.section("The runs")
    page.table(
        ["", "A", "B"],
        [
            ["scenario", first.load.scenario, second.load.scenario],
            ["server", first.host, second.host],
            ["started", first.started, second.started],
            ["verdict", first.verdict.status, second.verdict.status],
            ["sent late, p99", ms(first.total.lag.p99_s), ms(second.total.lag.p99_s)],
            ["CPU", first.machine.cpu, second.machine.cpu],
            ["Prism", first.machine.prism, second.machine.prism],
        ],
    )
    return page


def rows(found: Comparison) -> list[list[str]]:
    """The comparison as table cells: measure, A, B, ratio, interval, judgement."""
    return [
        [
            d.measure,
            _shown(d.measure, d.a),
            _shown(d.measure, d.b),
            "–" if d.ratio is None else f"{d.ratio:.3f}",
            "–" if d.low is None else f"{d.low:.3f} to {d.high:.3f}",
            d.judgement if d.measure in MEASURES else "",
        ]
        for d in found.differences
    ]


def _shown(measure: str, value: float | None) -> str:
    return ms(value) if measure in MEASURES else "–" if value is None else f"{value:.4g}"


def _warnings(a: LoadResult, b: LoadResult) -> list[str]:
    found = [f"{name} is an invalid run" for name, r in (("A", a), ("B", b)) if r.verdict.status == "invalid"]
    for what, x, y in (
        ("scenarios", a.load.scenario, b.load.scenario),
        ("loops", a.load.loop, b.load.loop),
        ("arrivals", a.load.phases, b.load.phases),
        ("rates", a.load.rate, b.load.rate),
        ("request bodies", [t["encoding"] for t in a.load.targets], [t["encoding"] for t in b.load.targets]),
        ("machines", (a.machine.cpu, a.machine.cores), (b.machine.cpu, b.machine.cores)),
    ):
        if x != y:
            found.append(f"different {what}")
    return found


def _latencies_by_second(file: Path, result: LoadResult) -> list[Times]:
    """Latencies of answers in the measured part, one array per second with any; empty without samples."""
    beside = file.parent / "samples.npz"
    if not beside.is_file():
        return []
    try:
        with np.load(beside, allow_pickle=False) as arrays:
            samples = Samples(**{name: arrays[name] for name in COLUMNS}, versions=tuple(arrays["versions"].tolist()))
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(f"{beside}: not the samples of a load test: {error}") from None
    start_s, end_s = result.total.start_s, result.total.start_s + result.total.duration_s
    inside = samples.only(samples.ok & (samples.due_s >= start_s) & (samples.due_s < end_s))
    seconds: NDArray[np.int64] = np.floor(inside.due_s).astype(np.int64)
    cuts = np.flatnonzero(np.diff(seconds)) + 1
    return [part for part in np.split(inside.latency_s, cuts) if len(part)]


def _resampled(seconds: list[Times], rng: np.random.Generator) -> Times:
    return np.concatenate([seconds[i] for i in rng.integers(0, len(seconds), len(seconds))])


def _measures(latency_s: Times) -> dict[str, float]:
    p50, p90, p99 = np.quantile(latency_s, [0.5, 0.9, 0.99], method="inverted_cdf")
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "mean": float(np.mean(latency_s))}
