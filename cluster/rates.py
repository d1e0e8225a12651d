"""What happened between two looks at the gateways: rates, latencies and batch sizes, by model version.

A gateway's counters only grow, and belong to its process: readings are compared with earlier ones of the same gateway,
and gateways are added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STALE_S = 10.0  # a gateway that was not met for so long no longer counts

Version = tuple[str, str]
"""(model, version)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of one gateway, or of all on a node, at a moment (Unix time), by version as `/api/v1/overview` has them.

    `bounds_s` are the upper bounds of `request_buckets`, which have one entry more.
    """

    gateway: str
    at_s: float
    bounds_s: tuple[float, ...]
    counts: Mapping[Version, Mapping[str, Any]]

    @classmethod
    def of(cls, overview: Mapping[str, Any]) -> Reading:
        """From the JSON of `/api/v1/overview`."""
        counts = {
            (model["name"], version["version"]): version["counts"]
            for model in overview["models"]
            for version in model["versions"]
        }
        gateways = ",".join(overview.get("gateways") or [overview["gateway"]])
        return cls(gateways, overview["at_s"], tuple(overview["bounds_s"]), counts)


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one version, over all gateways. Latencies and batch rows are None where nothing was answered."""

    requests_per_s: float = 0.0
    errors_per_s: float = 0.0
    p50_s: float | None = None
    p99_s: float | None = None
    batch_rows: float | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """What one gateway counted for one version in `seconds`."""

    seconds: float
    answered: float
    failed: float
    buckets: tuple[float, ...]
    bounds_s: tuple[float, ...]
    batches: float
    rows: float


class Readings:
    """The last window of every gateway that was met."""

    def __init__(self) -> None:
        self._last: dict[str, Reading] = {}
        self._windows: dict[str, tuple[float, dict[Version, Window]]] = {}

    def take(self, readings: Iterable[Reading], now_s: float) -> dict[Version, Rate]:
        """Rates by version, once a gateway was met twice. `now_s`: on the readings' clock."""
        for reading in readings:
            before = self._last.get(reading.gateway)
            if before is not None and reading.at_s > before.at_s:
                self._windows[reading.gateway] = (reading.at_s, windows(before, reading))
            self._last[reading.gateway] = reading
        fresh = [found for at_s, found in self._windows.values() if now_s - at_s <= STALE_S]
        versions = {version for found in fresh for version in found}
        return {version: rate_of([found[version] for found in fresh if version in found]) for version in versions}


def windows(before: Reading, after: Reading) -> dict[Version, Window]:
    """What the gateway counted between its two readings. A version that is new counts from zero."""
    found = {}
    for version, now in after.counts.items():
        then = before.counts.get(version, {})
        statuses = {code: n - then.get("status", {}).get(code, 0) for code, n in now["status"].items()}
        answered = statuses.pop("200", 0)
        earlier = then.get("request_buckets") or [0] * len(now["request_buckets"])
        found[version] = Window(
            seconds=after.at_s - before.at_s,
            answered=answered,
            failed=sum(statuses.values()),
            buckets=tuple(n - m for n, m in zip(now["request_buckets"], earlier, strict=True)),
            bounds_s=after.bounds_s,
            batches=now["batches"] - then.get("batches", 0),
            rows=now["batch_rows"] - then.get("batch_rows", 0),
        )
    return found


def rate_of(parts: Sequence[Window]) -> Rate:
    """The windows of one version at several gateways, added up."""
    buckets = [sum(column) for column in zip(*(part.buckets for part in parts), strict=True)]
    bounds_s = parts[0].bounds_s if parts else ()
    batches = sum(part.batches for part in parts)
    return Rate(
        requests_per_s=sum((part.answered + part.failed) / part.seconds for part in parts),
        errors_per_s=sum(part.failed / part.seconds for part in parts),
        p50_s=quantile_s(buckets, bounds_s, 0.5),
        p99_s=quantile_s(buckets, bounds_s, 0.99),
        batch_rows=sum(part.rows for part in parts) / batches if batches > 0 else None,
    )


def quantile_s(buckets: Sequence[float], bounds_s: Sequence[float], q: float) -> float | None:
    """The `q` quantile of a histogram, linear within a bucket; its last bound where it lies beyond. None if empty."""
    whole = sum(buckets)
    if whole <= 0:
        return None
    below, least_s = 0.0, 0.0
    for count, bound_s in zip(buckets, bounds_s, strict=False):
        if count > 0 and below + count >= q * whole:
            return least_s + (bound_s - least_s) * (q * whole - below) / count
        below, least_s = below + count, bound_s
    return bounds_s[-1]
