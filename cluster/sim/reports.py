"""What the one who decides can know: replicas' statistics as Ray Serve collects them.

Replicas record every `record_s`, send what they recorded within `look_back_s` every `interval_s`, and the mean over
that, weighted by time and with the last value held until now, is what a policy sees.

Source: ray.serve._private.replica `start_metrics_pusher` (recording at a fifth of the look-back),
autoscaling_state `_get_aggregated_custom_metrics` and metrics_utils `time_weighted_average`, Ray 2.60.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

from cluster.policy.load import LOOK_BACK_S, METRICS_INTERVAL_S, Counters, LoadMeter, ReplicaLoad
from cluster.sim.path import Path, SimReplica

RECORD_SHARE = 0.2  # of the look-back
_values = attrgetter(*(field.name for field in fields(ReplicaLoad)))


@dataclass(frozen=True, slots=True)
class Timing:
    """How statistics travel; `delay_s` is between a replica's sending and the policy's reading."""

    interval_s: float = METRICS_INTERVAL_S
    look_back_s: float = LOOK_BACK_S
    delay_s: float = 0.05

    @property
    def record_s(self) -> float:
        return min(self.look_back_s * RECORD_SHARE, self.interval_s)


class Series:
    """Points (time, values) that a source recorded, and the last ones it sent."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._points: deque[tuple[float, tuple[float, ...]]] = deque()
        self._sent: list[tuple[float, tuple[float, ...]]] = []
        self._under_way: tuple[float, list[tuple[float, tuple[float, ...]]]] | None = None
        self._record_at_s = self._send_at_s = -1.0

    def due(self, now_s: float) -> bool:
        """Whether it is time to record."""
        return now_s >= self._record_at_s - 1e-9

    def record(self, values: tuple[float, ...], now_s: float) -> None:
        self._points.append((now_s, values))
        self._record_at_s = now_s + self._timing.record_s

    def pass_on(self, now_s: float) -> None:
        """Send if it is time to; let what was sent before arrive."""
        if self._under_way is not None and now_s >= self._under_way[0]:
            self._sent, self._under_way = self._under_way[1], None
        if now_s >= self._send_at_s - 1e-9:
            while self._points and self._points[0][0] < now_s - self._timing.look_back_s:
                self._points.popleft()
            self._under_way = (now_s + self._timing.delay_s, list(self._points))
            self._send_at_s = now_s + self._timing.interval_s

    @property
    def sent(self) -> Sequence[tuple[float, tuple[float, ...]]]:
        """The points that have arrived, oldest first."""
        return self._sent

    def mean(self, now_s: float) -> tuple[float, ...] | None:
        """Of what has arrived; None if nothing has."""
        points = self._sent
        if not points:
            return None
        first_s = points[0][0]
        if now_s <= first_s:
            return points[0][1]
        ends = [at_s for at_s, _ in points[1:]] + [now_s]
        weights = [end - at_s for end, (at_s, _) in zip(ends, points, strict=True)]
        columns = zip(*(values for _, values in points), strict=True)
        return tuple(sum(w * v for w, v in zip(weights, column, strict=True)) / (now_s - first_s) for column in columns)


class Reports:
    """Every ready replica's statistics as the policy sees them."""

    def __init__(self, timing: Timing, capacity_rows_per_s: float) -> None:
        self._timing = timing
        self._capacity = capacity_rows_per_s
        self._series: dict[int, tuple[Series, LoadMeter]] = {}

    def observe(self, path: Path, now_s: float) -> None:
        """Let replicas record and send what is due."""
        ready = path.ready()
        gone = self._series.keys() - {replica.id for replica in ready}
        for id in gone:
            del self._series[id]
        for replica in ready:
            series, meter = self._of(replica, now_s)
            if series.due(now_s):
                load = meter.read(_counters(replica, now_s), _queued(replica), len(path.waiting))
                series.record(_values(load), now_s)
            series.pass_on(now_s)

    def loads(self, now_s: float) -> list[ReplicaLoad]:
        """The means of the replicas that have reported."""
        means = (series.mean(now_s) for series, _ in self._series.values())
        return [ReplicaLoad(*mean) for mean in means if mean is not None]

    def _of(self, replica: SimReplica, now_s: float) -> tuple[Series, LoadMeter]:
        known = self._series.get(replica.id)
        if known is None:
            meter = LoadMeter(Counters(now_s), self._capacity, now_s - replica.started_s)
            known = self._series[replica.id] = (Series(self._timing), meter)
        return known


def _counters(replica: SimReplica, now_s: float) -> Counters:
    busy_s = replica.busy_total_s(now_s)
    return Counters(now_s, replica.rows_in, replica.rows_done, busy_s, replica.busy_s, replica.expected_s)


def _queued(replica: SimReplica) -> int:
    return sum(unit.rows for unit in replica.queue.values())
