"""A bound on a percentile of latencies, as people write it: `p99<20ms`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOUND = re.compile(r"\s*p(\d{1,2}(?:\.\d+)?)\s*<\s*(\d+(?:\.\d+)?)\s*(us|µs|ms|s)\s*\Z")
_UNIT_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class LatencyBound:
    """At least `percentile` percent of answers take less than `limit_s` seconds."""

    percentile: float
    limit_s: float

    def __str__(self) -> str:
        return f"p{self.percentile:g}<{self.limit_s * 1e3:g}ms"


def latency_bound(text: str) -> LatencyBound | None:
    """What `text` says; None if it is no such bound, or bounds nothing (p0, 0 ms)."""
    found = _BOUND.match(text)
    if not found or not float(found[1]) or not float(found[2]):
        return None
    return LatencyBound(float(found[1]), float(found[2]) * _UNIT_S[found[3]])
