"""What gateway processes have counted, at one moment, and how one tells it to another.

A node may have several gateways behind one listening socket: whoever is asked for numbers collects the readings of all
(`deployments.gateway.siblings`), so that every answer is about the whole node.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from deployments.metrics import ROWS, SECONDS, Cell, Histogram, Labels, Metrics

WAITING_ROWS = "prism_queue_rows"
REPLICAS = "prism_replicas"
ANSWERED = "prism_replicas_answered"
WANTED = "prism_replicas_wanted"
GRANTED = "prism_replicas_granted"


@dataclass(frozen=True, slots=True)
class Reading:
    """One gateway process. `gauges` are (name, model, version, arm, value)."""

    gateway: str
    cells: dict[Labels, Cell]
    unknown: Cell
    gauges: list[tuple[str, str, str, str, float]]

    @classmethod
    def of(cls, metrics: Metrics) -> Reading:
        """This process's; its cells are the live ones."""
        gauges = [(name, *value) for name, (_, read) in metrics.gauges.items() for value in read()]
        return cls(metrics.gateway, dict(metrics.cells), metrics.unknown, gauges)


@dataclass(frozen=True, slots=True)
class NodeReading:
    """Every gateway of a node, the one that was asked first; `silent` others live but did not say in time."""

    readings: tuple[Reading, ...]
    silent: int = 0

    @property
    def gateways(self) -> list[str]:
        """Names of those that are in here, sorted. Numbers of equal names are of the same processes, and only grow."""
        return sorted(reading.gateway for reading in self.readings)

    def of_model(self, model: str, version: str | None = None) -> dict[str, list[Cell]]:
        """Cells of `model` (of one version, or of all) by version."""
        found: dict[str, list[Cell]] = {}
        for reading in self.readings:
            for (name, each, _), cell in reading.cells.items():
                if name == model and version in (None, each):
                    found.setdefault(each, []).append(cell)
        return found

    def gauge(self, name: str, model: str, version: str) -> list[float]:
        """The gauge's value in every gateway that has one."""
        return [
            value
            for reading in self.readings
            for each, of, which, _, value in reading.gauges
            if (each, of, which) == (name, model, version)
        ]


class _Histogram(msgspec.Struct, array_like=True, frozen=True):
    counts: list[float]
    total: float


class _Cell(msgspec.Struct, array_like=True, frozen=True):
    labels: Labels
    histograms: tuple[_Histogram, _Histogram, _Histogram, _Histogram]  # request, queue, compute, batch
    rows: int
    status: dict[int, int]
    failed_s: float
    last_s: float


class _Reading(msgspec.Struct, array_like=True, frozen=True):
    gateway: str
    cells: list[_Cell]
    unknown: _Cell
    gauges: list[tuple[str, str, str, str, float]]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Reading)


def pack(reading: Reading) -> bytes:
    """For a sibling on the same machine (times are on its monotonic clock)."""
    cells = [_packed(labels, cell) for labels, cell in reading.cells.items()]
    return _ENCODER.encode(_Reading(reading.gateway, cells, _packed(("", "", ""), reading.unknown), reading.gauges))


def unpack(raw: bytes) -> Reading:
    """Raises: ValueError if it is not a reading."""
    packed = _DECODER.decode(raw)
    return Reading(
        packed.gateway, {cell.labels: _cell(cell) for cell in packed.cells}, _cell(packed.unknown), packed.gauges
    )


def _packed(labels: Labels, cell: Cell) -> _Cell:
    return _Cell(
        labels,
        (_told(cell.request), _told(cell.queue), _told(cell.compute), _told(cell.batch)),
        cell.rows,
        dict(cell.status),
        cell.failed_s,
        cell.last_s,
    )


def _cell(packed: _Cell) -> Cell:
    request, queue, compute = (Histogram(SECONDS, h.counts, h.total) for h in packed.histograms[:3])
    batch = Histogram(ROWS, packed.histograms[3].counts, packed.histograms[3].total)
    return Cell.of((request, queue, compute, batch), packed.rows, packed.status, packed.failed_s, packed.last_s)


def _told(histogram: Histogram) -> _Histogram:
    return _Histogram(histogram.counts.tolist(), histogram.total)
