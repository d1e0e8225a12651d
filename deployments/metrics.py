"""All metrics of a process.

On the request path a metric is a note in a `Cell`; what was counted becomes a `Reading` when somebody asks
(`deployments.readings`), and Prometheus text is made of readings (`deployments.exposition`). A cell exists per (model,
version, arm) that was routed to, so labels are bounded by what was published; requests for models that do not exist are
counted under the empty model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

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

    def __init__(self, bounds: Sequence[float], counts: Sequence[float] | None = None, total: float = 0.0) -> None:
        """Raises: ValueError if there is not one count per bound and one more."""
        self.bounds = bounds
        self.counts = np.zeros(len(bounds) + 1) if counts is None else np.array(counts, np.float64)
        self.total = total
        if len(self.counts) != len(bounds) + 1:
            raise ValueError(f"counts: expected {len(bounds) + 1}, got {len(self.counts)}")

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

    @classmethod
    def of(
        cls,
        histograms: tuple[Histogram, Histogram, Histogram, Histogram],
        rows: int,
        status: dict[int, int],
        failed_s: float,
        last_s: float,
    ) -> Cell:
        """A cell that has counted this; `histograms` are request, queue, compute and batch."""
        cell = cls()
        cell._request, cell._queue, cell._compute, cell._batch = histograms
        cell._rows, cell._status, cell._failed_s, cell.last_s = rows, status, failed_s, last_s
        return cell

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
    """The cells of this process, and gauges that are read when somebody asks.

    Attributes:
        gateway: This process's name, the label `gateway` of everything it counts.
        gauges: By name: what it says, and its values now.
    """

    def __init__(self, gateway: str = "") -> None:
        self.gateway = gateway
        self.cells: dict[Labels, Cell] = {}
        self.unknown = Cell()  # requests that named no model there is
        self.gauges: dict[str, tuple[str, Callable[[], Gauges]]] = {}

    def cell(self, model: str, version: str, arm: str = "") -> Cell:
        """The cell with these labels, made when it is first asked for. Ask only for versions that exist."""
        key = (model, version, arm)
        found = self.cells.get(key)
        if found is None:
            found = self.cells[key] = Cell()
        return found

    def keep(self, versions: set[tuple[str, str]]) -> None:
        """Forget the cells of every (model, version) that is not in `versions`."""
        for key in [key for key in self.cells if key[:2] not in versions]:
            del self.cells[key]

    def gauge(self, name: str, about: str, read: Callable[[], Gauges]) -> None:
        """Have `read` called at every scrape."""
        self.gauges[name] = (about, read)
