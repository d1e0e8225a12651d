"""The server's own view of a run: its Prometheus metrics, polled while the load runs.

A server without them, or one that stops answering, leaves gaps and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

from loadtest.calls import open_url

Labels = tuple[tuple[str, str], ...]
_COUNTS = ("prism_replicas", "prism_replicas_wanted", "prism_replicas_granted")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Prism's metrics at one moment (wall clock), by name and sorted labels.

    Counters belong to the gateway processes in `gateway`, so they are compared only with earlier ones of the same.
    """

    at_s: float
    gateway: str
    values: dict[tuple[str, Labels], float]


@dataclass(frozen=True, slots=True)
class ServerTimeline:
    """One entry per second of the run; None where the server did not say."""

    batch_rows: tuple[float | None, ...]  # mean rows per batch of that second
    queue_rows: tuple[float | None, ...]
    replicas: dict[str, tuple[float | None, ...]]  # by version
    wanted: dict[str, tuple[float | None, ...]] = field(default_factory=dict)  # what autoscaling asked for
    granted: dict[str, tuple[float | None, ...]] = field(default_factory=dict)  # None while nothing holds it


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """Over one window. `batches` counts batches by their rows: the upper bound of each of the server's buckets."""

    batch_rows: float | None = None
    batches: dict[str, int] = field(default_factory=dict)
    replicas_min: int | None = None
    replicas_max: int | None = None
    queue_rows_max: float | None = None


def parse(text: str, at_s: float) -> Snapshot:
    """The `prism_` metrics in a Prometheus text page; lines that cannot be read are left out."""
    values: dict[tuple[str, Labels], float] = {}
    for line in text.splitlines():
        if not line.startswith("prism_"):
            continue
        try:
            for family in text_string_to_metric_families(line + "\n"):
                for sample in family.samples:
                    values[sample.name, tuple(sorted(sample.labels.items()))] = float(sample.value)
        except ValueError:
            continue
    gateways = sorted(dict(labels).get("gateway", "") for name, labels in values if name == "prism_gateway_info")
    return Snapshot(at_s, ",".join(gateways), values)


class MetricsPoller:
    """Polls `GET {host}/metrics` in a thread of its own between `start` and `stop`."""

    def __init__(self, host: str, period_s: float = 1.0) -> None:
        self._url = f"{host}/metrics"
        self._period_s = period_s
        self._snapshots: list[Snapshot] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="metrics-poller", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        self._over.set()
        self._thread.join(timeout=5)
        return list(self._snapshots)

    def _poll(self) -> None:
        next_s = time.monotonic()
        while not self._over.is_set():
            try:
                with open_url(self._url, timeout=2) as answer:
                    snapshot = parse(answer.read().decode("utf-8", "replace"), time.time())
                self._snapshots.append(snapshot)
            except (OSError, HTTPException):
                pass
            next_s = max(next_s + self._period_s, time.monotonic())
            self._over.wait(next_s - time.monotonic())


def server_timeline(
    snapshots: Sequence[Snapshot], models: Iterable[str], epoch_s: float, seconds: int
) -> ServerTimeline:
    """Snapshots laid onto the first `seconds` seconds of a run that began at `epoch_s`."""
    wanted = frozenset(models)
    batch: list[float | None] = [None] * seconds
    queue: list[float | None] = [None] * seconds
    counts: dict[str, dict[str, list[float | None]]] = {name: {} for name in _COUNTS}
    last: dict[str, Snapshot] = {}
    for now in snapshots:
        before = last.get(now.gateway)
        last[now.gateway] = now
        second = int(now.at_s - epoch_s)
        if not 0 <= now.at_s - epoch_s < seconds:
            continue
        if before is not None:
            batch[second] = _mean_batch([(before, now)], wanted)
        queue[second] = _total(now, "prism_queue_rows", wanted)
        for name, rows in counts.items():
            for version, count in _replicas(now, wanted, name).items():
                rows.setdefault(version, [None] * seconds)[second] = count
    by_version = ({version: tuple(row) for version, row in sorted(rows.items())} for rows in counts.values())
    return ServerTimeline(tuple(batch), tuple(queue), *by_version)


def server_figures(snapshots: Sequence[Snapshot], models: Iterable[str], start_s: float, end_s: float) -> ServerFigures:
    """What the server said between two moments (wall clock)."""
    wanted = frozenset(models)
    inside = [s for s in snapshots if start_s - 0.5 <= s.at_s <= end_s + 0.5]
    if not inside:
        return ServerFigures()
    by_gateway: dict[str, list[Snapshot]] = {}
    for snapshot in inside:
        by_gateway.setdefault(snapshot.gateway, []).append(snapshot)
    spans = [(each[0], each[-1]) for each in by_gateway.values()]
    counts = [sum(found.values()) for s in inside if (found := _replicas(s, wanted))]
    queues = [rows for s in inside if (rows := _total(s, "prism_queue_rows", wanted)) is not None]
    return ServerFigures(
        batch_rows=_mean_batch(spans, wanted),
        batches=_batches(spans, wanted),
        replicas_min=int(min(counts)) if counts else None,
        replicas_max=int(max(counts)) if counts else None,
        queue_rows_max=max(queues) if queues else None,
    )


def _mean_batch(spans: Sequence[tuple[Snapshot, Snapshot]], models: frozenset[str]) -> float | None:
    rows = sum(value for _, value in _grown(spans, "prism_batch_rows_sum", models))
    batches = sum(value for _, value in _grown(spans, "prism_batch_rows_count", models))
    return rows / batches if batches > 0 else None


def _batches(spans: Sequence[tuple[Snapshot, Snapshot]], models: frozenset[str]) -> dict[str, int]:
    """Batches per bucket of the server's histogram, from its cumulative counts."""
    cumulative: dict[float, float] = defaultdict(float)
    for labels, grown in _grown(spans, "prism_batch_rows_bucket", models):
        cumulative[float(dict(labels).get("le", "inf"))] += grown
    batches: dict[str, int] = {}
    below = 0.0
    for bound in sorted(cumulative):
        if count := round(cumulative[bound] - below):
            batches["more" if bound == float("inf") else f"{bound:g}"] = count
        below = cumulative[bound]
    return batches


def _grown(
    spans: Sequence[tuple[Snapshot, Snapshot]], name: str, models: frozenset[str]
) -> Iterator[tuple[Labels, float]]:
    """How much each counter called `name` grew; one that shrank was restarted and counts from 0."""
    for before, now in spans:
        for (each, labels), value in now.values.items():
            if each == name and _is_about(labels, models):
                earlier = before.values.get((each, labels), 0.0)
                yield labels, value - earlier if value >= earlier else value


def _total(snapshot: Snapshot, name: str, models: frozenset[str]) -> float | None:
    found = [v for (each, labels), v in snapshot.values.items() if each == name and _is_about(labels, models)]
    return sum(found) if found else None


def _replicas(snapshot: Snapshot, models: frozenset[str], of: str = _COUNTS[0]) -> dict[str, float]:
    """By version; gateways see the same replicas, so the one that sees most is believed."""
    by_gateway: dict[str, dict[str, float]] = {}
    for (name, labels), value in snapshot.values.items():
        if name == of and _is_about(labels, models):
            about = dict(labels)
            version = about.get("version", "")
            label = version if len(models) < 2 else f"{about.get('model', '')}:{version}"
            found = by_gateway.setdefault(about.get("gateway", ""), {})
            found[label] = found.get(label, 0.0) + value
    versions = {version for found in by_gateway.values() for version in found}
    return {version: max(found.get(version, 0.0) for found in by_gateway.values()) for version in versions}


def _is_about(labels: Labels, models: frozenset[str]) -> bool:
    model = dict(labels).get("model")
    return model is None or not models or model in models
