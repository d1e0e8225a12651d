"""What a batch costs: a curve measured on the artifact, and its straight-line fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds per engine call by rows, from measured points (rows ascending), linear between them.

    Beyond the last point the last segment's slope goes on; with one point, cost is proportional to rows.
    An empty curve means nothing was measured, and predicts 0.
    """

    rows: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()

    @classmethod
    def of(cls, points: Mapping[int, float]) -> Self:
        """From {rows: seconds}."""
        ordered = sorted(points.items())
        return cls(tuple(r for r, _ in ordered), tuple(s for _, s in ordered))

    def run_s(self, rows: int) -> float:
        """Predicted seconds for one call of `rows` rows."""
        xs, ys = self.rows, self.seconds
        if not xs:
            return 0.0
        if len(xs) == 1:
            return ys[0] * max(rows, xs[0]) / xs[0]
        if rows <= xs[0]:
            return ys[0]
        i = min(bisect_left(xs, rows), len(xs) - 1)
        slope = (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])
        return max(ys[0] if slope < 0 else ys[i - 1], ys[i - 1] + slope * (rows - xs[i - 1]))

    def rows_per_s(self, max_rows: int) -> float:
        """The best steady throughput of one engine with calls of at most `max_rows` rows; 0 if nothing was measured."""
        counts = [r for r in self.rows if r <= max_rows] or list(self.rows[:1])
        return max((r / self.run_s(r) for r in counts if self.run_s(r) > 0), default=0.0)

    def best_rows(self, max_rows: int, gain: float = 0.03) -> int:
        """The smallest measured batch within `gain` of the best throughput: beyond it a batch no longer pays."""
        best = self.rows_per_s(max_rows)
        for r in self.rows:
            if r <= max_rows and self.run_s(r) > 0 and r / self.run_s(r) >= best * (1 - gain):
                return r
        return max_rows

    def corrected(self, points: Mapping[int, float], max_rows: int) -> Self:
        """The curve of another machine, where `points` were measured and larger batches were not, for want of time.

        Beyond the largest of `points` this curve's shape goes on, as much higher or lower as it was found to be there.
        Without such a shape a single point says nothing of how batches of up to `max_rows` pay: the curve is empty.
        """
        if not points:
            return self
        last = max(points)
        here_s = self.run_s(last)
        if here_s > 0:
            ratio = points[last] / here_s
            beyond = {rows: ratio * s for rows, s in zip(self.rows, self.seconds, strict=True) if rows > last}
            return type(self).of({**points, **beyond})
        return type(self).of(points) if len(points) > 1 or last >= max_rows else type(self)()


def fastest(curves: Iterable[CostCurve]) -> CostCurve:
    """The least that a batch takes on any of several machines; curves without points are left out."""
    known = [curve for curve in curves if curve.rows]
    counts = {rows for curve in known for rows in curve.rows}
    return CostCurve.of({rows: min(curve.run_s(rows) for curve in known) for rows in counts})
