"""What a load test has to show: bounds on latency percentiles and on errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log

from cluster.errors import InvalidRequest
from cluster.latency import LatencyBound, latency_bound

_ERRORS = re.compile(r"errors\s*(<=?)\s*(\d+(?:\.\d+)?)\s*%\Z")


@dataclass(frozen=True, slots=True)
class Objective:
    """Bounds that all have to hold. `max_error_share` counts failed requests against all that were offered."""

    latency: tuple[LatencyBound, ...]
    max_error_share: float = 0.0

    @classmethod
    def parse(cls, bounds: str | Sequence[str], path: str = "objective") -> Objective:
        """From `p99<50ms, errors<0.1%` or a list of such bounds; without one for errors, none are allowed.

        Raises: InvalidRequest, naming the bound.
        """
        latency: list[LatencyBound] = []
        share = 0.0
        for bound in bounds.split(",") if isinstance(bounds, str) else bounds:
            text = bound.strip()
            if (limit := latency_bound(text)) is not None:
                latency.append(limit)
            elif found := _ERRORS.match(text):
                share = float(found[2]) / 100
            else:
                raise InvalidRequest(
                    f"{path}: expected bounds such as p99<50ms or errors<0.1%, with percentiles and limits above 0, "
                    f"got {text!r}"
                )
        return cls(tuple(latency), share)

    @property
    def limit_s(self) -> float | None:
        """The limit an answer must keep to count as good: that of the highest percentile bounded."""
        return max(self.latency, key=lambda bound: bound.percentile).limit_s if self.latency else None

    def __str__(self) -> str:
        return ", ".join([*map(str, self.latency), f"errors<={self.max_error_share * 100:g}%"])


def samples_needed(percentile: float, certainty: float = 0.99) -> int:
    """Requests needed before "none was over the limit" says with `certainty` that the percentile keeps it.

    With n independent requests and a true share over the limit of 1 - p, none over has probability p**n; 459 for p99
    at 99 %. The same bound is behind MLPerf's early stopping.
    """
    return ceil(log(1 - certainty) / log(percentile / 100))
