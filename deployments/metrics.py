"""All metrics of a process, in one registry.

On the request path a metric is a note in a `Cell`; Prometheus text is made of them when somebody asks. A
cell exists per (model, version, arm) that was routed to, so labels are bounded by what was published; requests for
models that do not exist are counted under the empty model.

With several gateway processes on one port a scrape reaches any of them: `prism_gateway_info` says which one answered,
and every series counts that process only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

LABELS = ("model", "version", "arm")

_FOLD = 1024

# Steps of at most 2x from a quarter of a millisecond, so that a quantile read off the histogram is worth something
# where requests are fast, up to the longest deadline.
SECONDS = (
    *(0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024, 0.032, 0.048),
    *(0.064, 0.096, 0.128, 0.192, 0.256, 0.384, 0.512, 0.768, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 300.0),
)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 4096)


class Histogram:
    """Counts by upper bound, and their sum. `counts` has one entry more than `bounds`: what is beyond the last."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = np.zeros(len(bounds) + 1)
        self.total = 0.0

    def add(self, values: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> None:
        """Count `values` [n], each for its weight (1 without)."""
        places = np.searchsorted(self.bounds, values)
        self.counts += np.bincount(places, weights, len(self.counts))
        self.total += float(values.sum() if weights is None else values @ weights)

    @property
    def count(self) -> float:
        return float(self.counts.sum())

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, how many are not above it), as Prometheus wants it."""
        below = np.cumsum(self.counts).tolist()
        return [(str(bound), count) for bound, count in zip((*self.bounds, "+Inf"), below, strict=True)]


class Cell:
    """What was answered by one version as one arm.

    `answered` only notes a success: a thousand of them are counted together (numpy finds their buckets some ten times
    faster than one by one), or those there are when somebody reads.
    """

    __slots__ = ("_batch", "_compute", "_failed_s", "_fresh", "_queue", "_request", "_rows", "_status", "last_s")

    def __init__(self) -> None:
        self._fresh: list[tuple[float, float, float, int, int]] = []
        self._request = Histogram(SECONDS)
        self._queue = Histogram(SECONDS)
        self._compute = Histogram(SECONDS)
        self._batch = Histogram(ROWS)
        self._rows = 0
        self._status: dict[int, int] = {}
        self._failed_s = 0.0
        self.last_s = 0.0  # time.monotonic() of the latest success; 0 before the first

    def answered(
        self, now_s: float, request_s: float, queue_s: float, compute_s: float, rows: int, batch_rows: int
    ) -> None:
        """Count a success at `now_s` (`time.monotonic()`).

        Args:
            request_s: From the request's last byte to its answer.
            rows: The request's own.
            batch_rows: Rows of the batch that they were part of; 0 if it is not known. Each request counts for its
                share of the batch, so that the histogram counts batches, not requests.
        """
        self.last_s = now_s
        fresh = self._fresh
        fresh.append((request_s, queue_s, compute_s, rows, batch_rows))
        if len(fresh) >= _FOLD:
            self.fold()

    def failed(self, status: int, request_s: float) -> None:
        """Count an answer that is an error."""
        self._status[status] = self._status.get(status, 0) + 1
        self._failed_s += request_s

    def fold(self) -> None:
        """Count what was noted; every reading does this first."""
        if not self._fresh:
            return
        noted = np.array(self._fresh)
        self._fresh.clear()
        for histogram, column in ((self._request, 0), (self._queue, 1), (self._compute, 2)):
            histogram.add(noted[:, column])
        rows, batch_rows = noted[:, 3], noted[:, 4]
        known = batch_rows > 0
        self._batch.add(batch_rows[known], rows[known] / batch_rows[known])
        self._rows += int(rows.sum())
        self._status[200] = self._status.get(200, 0) + len(noted)

    @property
    def request(self) -> Histogram:
        """Successes: seconds from the last byte of the request to its answer."""
        self.fold()
        return self._request

    @property
    def queue(self) -> Histogram:
        """Seconds at the replica before the batch ran."""
        self.fold()
        return self._queue

    @property
    def compute(self) -> Histogram:
        """Seconds of the batch."""
        self.fold()
        return self._compute

    @property
    def batch(self) -> Histogram:
        """Batches by their rows."""
        self.fold()
        return self._batch

    @property
    def rows(self) -> int:
        self.fold()
        return self._rows

    @property
    def status(self) -> Mapping[int, int]:
        """Answers by HTTP status."""
        self.fold()
        return self._status

    @property
    def failed_s(self) -> float:
        """Seconds spent on requests that failed."""
        return self._failed_s

    @property
    def successes(self) -> int:
        return self.status.get(200, 0)

    @property
    def failures(self) -> int:
        return sum(self.status.values()) - self.successes


Labels = tuple[str, str, str]
Gauges = Iterable[tuple[str, str, str, float]]
"""(model, version, arm, value)."""


class Metrics:
    """The cells of this process and whatever else reports itself at scrape time."""

    def __init__(self, gateway: str = "") -> None:
        self.gateway = gateway
        self.cells: dict[Labels, Cell] = {}
        self.unknown = Cell()  # requests that named no model there is
        self._registry = CollectorRegistry()
        self._registry.register(_Cells(self))

    def cell(self, model: str, version: str, arm: str = "") -> Cell:
        """The cell with these labels, made when it is first asked for. Ask only for versions that exist."""
        key = (model, version, arm)
        found = self.cells.get(key)
        if found is None:
            found = self.cells[key] = Cell()
        return found

    def of_model(self, model: str, version: str | None = None) -> dict[str, list[Cell]]:
        """Cells of `model` (of one version, or of all) by version."""
        found: dict[str, list[Cell]] = {}
        for (name, each, _), cell in self.cells.items():
            if name == model and version in (None, each):
                found.setdefault(each, []).append(cell)
        return found

    def keep(self, versions: set[tuple[str, str]]) -> None:
        """Forget the cells of every (model, version) that is not in `versions`."""
        for key in [key for key in self.cells if key[:2] not in versions]:
            del self.cells[key]

    def gauge(self, name: str, about: str, read: Callable[[], Gauges]) -> None:
        """Have `read` called at every scrape."""
        self._registry.register(_Gauge(name, about, read))

    def scrape(self) -> bytes:
        """Prometheus text, version 0.0.4."""
        return generate_latest(self._registry)


class _Cells(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        cells: list[tuple[Labels, Cell]] = list(metrics.cells.items())
        for name, about, pick in _HISTOGRAMS:
            family = HistogramMetricFamily(name, about, labels=LABELS)
            for labels, cell in cells:
                histogram = pick(cell)
                family.add_metric(labels, histogram.cumulative(), histogram.total)
            yield family
        answers = CounterMetricFamily("prism_requests_total", "Answers by HTTP status", labels=(*LABELS, "status"))
        for labels, cell in (*cells, (("", "", ""), metrics.unknown)):
            for status, count in sorted(cell.status.items()):
                answers.add_metric((*labels, str(status)), count)
        yield answers
        info = GaugeMetricFamily("prism_gateway_info", "The gateway process that answered", labels=("gateway",))
        info.add_metric((metrics.gateway,), 1)
        yield info


_HISTOGRAMS: tuple[tuple[str, str, Callable[[Cell], Histogram]], ...] = (
    ("prism_request_seconds", "Successful requests, from their last byte to their answer", lambda cell: cell.request),
    ("prism_queue_seconds", "Waiting at the replica before the batch ran", lambda cell: cell.queue),
    ("prism_compute_seconds", "The batch that a request was part of", lambda cell: cell.compute),
    ("prism_batch_rows", "Batches by their rows", lambda cell: cell.batch),
)


class _Gauge(Collector):
    def __init__(self, name: str, about: str, read: Callable[[], Gauges]) -> None:
        self._name = name
        self._about = about
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return (GaugeMetricFamily(self._name, self._about, labels=LABELS),)

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._about, labels=LABELS)
        for *labels, value in self._read():
            family.add_metric(labels, value)
        yield family
