"""Prometheus text of what the gateways of a node have counted.

Every series has the label `gateway`: counters belong to one process and begin at 0 with it, so that they never go
backwards; sums over gateways are the reader's (`sum without (gateway)`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from deployments.metrics import Cell, Histogram, Labels
from deployments.readings import NodeReading

LABELS = ("model", "version", "arm", "gateway")


def exposition(node: NodeReading, gauges: Mapping[str, str]) -> bytes:
    """Prometheus text, version 0.0.4. `gauges`: what each says, by name; others are left out."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Node(node, gauges))
    return generate_latest(registry)


class _Node(Collector):
    def __init__(self, node: NodeReading, gauges: Mapping[str, str]) -> None:
        self._node = node
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        readings = self._node.readings
        cells: list[tuple[tuple[str, ...], Cell]] = [
            ((*labels, reading.gateway), cell) for reading in readings for labels, cell in reading.cells.items()
        ]
        for name, about, pick in _HISTOGRAMS:
            family = HistogramMetricFamily(name, about, labels=LABELS)
            for labels, cell in cells:
                histogram = pick(cell)
                family.add_metric(labels, histogram.cumulative(), histogram.total)
            yield family
        answers = CounterMetricFamily("prism_requests_total", "Answers by HTTP status", labels=(*LABELS, "status"))
        unknown: Labels = ("", "", "")
        cells += [((*unknown, reading.gateway), reading.unknown) for reading in readings]
        for labels, cell in cells:
            for status, count in sorted(cell.status.items()):
                answers.add_metric((*labels, str(status)), count)
        yield answers
        for name, about in self._gauges.items():
            gauge = GaugeMetricFamily(name, about, labels=LABELS)
            for reading in readings:
                for each, model, version, arm, value in reading.gauges:
                    if each == name:
                        gauge.add_metric((model, version, arm, reading.gateway), value)
            yield gauge
        info = GaugeMetricFamily("prism_gateway_info", "The gateways of this node", labels=("gateway",))
        for reading in readings:
            info.add_metric((reading.gateway,), 1)
        yield info
        about = "Gateways of this node that did not say what they counted in time, so that it is not here"
        yield GaugeMetricFamily("prism_gateways_silent", about, value=self._node.silent)


_HISTOGRAMS: tuple[tuple[str, str, Callable[[Cell], Histogram]], ...] = (
    ("prism_request_seconds", "Successful requests, from their last byte to their answer", lambda cell: cell.request),
    ("prism_queue_seconds", "Waiting at the replica before the batch ran", lambda cell: cell.queue),
    ("prism_compute_seconds", "The batch that a request was part of", lambda cell: cell.compute),
    ("prism_batch_rows", "Batches by their rows", lambda cell: cell.batch),
)
