"""Ray Serve's own autoscaling policy for the simulation: its real functions, fed as Serve feeds them.

Serve's router records queued and running requests every `min(look_back / 5, interval)` and sends them every interval
(`_private/router.py`); its controller merges the series, averages them over the look-back (`autoscaling_metrics_merge`)
and asks the policy, whose wish passes scaling factors and delays (`autoscaling_policy`). The delays take the time as an
argument, which is what makes them usable in virtual time. Checked against Ray 2.60.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.sim.path import Path

RECORD_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class RaySettings:
    """Fields of `ray.serve.config.AutoscalingConfig`, with its defaults."""

    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    look_back_period_s: float = 30.0
    metrics_interval_s: float = 10.0
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0


class RayScaler:
    """Ray Serve's default policy."""

    def __init__(self, settings: RaySettings, max_replicas: int, min_replicas: int = 1) -> None:
        from ray.serve.config import AutoscalingConfig

        self._settings = settings
        self._config = AutoscalingConfig(
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            target_ongoing_requests=settings.target_ongoing_requests,
            upscale_delay_s=settings.upscale_delay_s,
            downscale_delay_s=settings.downscale_delay_s,
            look_back_period_s=settings.look_back_period_s,
            metrics_interval_s=settings.metrics_interval_s,
            upscaling_factor=settings.upscaling_factor,
            downscaling_factor=settings.downscaling_factor,
        )
        self._state: dict[str, Any] = {}
        self._points: dict[int, deque[tuple[float, float]]] = {}  # by replica; 0 is the router's queue
        self._sent: dict[int, list[tuple[float, float]]] = {}
        self._record_at_s = self._send_at_s = 0.0

    def observe(self, path: Path, now_s: float) -> None:
        settings = self._settings
        ready = {replica.id: replica for replica in path.ready()}
        if now_s >= self._record_at_s - 1e-9:
            interval_s = min(settings.look_back_period_s * RECORD_SHARE, settings.metrics_interval_s)
            self._record_at_s = now_s + interval_s
            self._record(0, now_s, float(len(path.waiting)))
            for id, replica in ready.items():
                self._record(id, now_s, float(replica.outstanding_rows))
        if now_s >= self._send_at_s - 1e-9:
            self._send_at_s = now_s + settings.metrics_interval_s
            for id, points in list(self._points.items()):
                while points and points[0][0] < now_s - settings.look_back_period_s:
                    points.popleft()
                if not points:
                    del self._points[id]
            self._sent = {id: list(points) for id, points in self._points.items()}

    def decide(self, path: Path, target: int, most: int, now_s: float) -> tuple[int, str]:
        from ray.serve import autoscaling_policy as ray_policy

        context = self._context(path, target, self._total(path, now_s), now_s)
        cold = ray_policy._get_cold_start_scale_up_replicas(context)
        if cold is not None:
            wanted = cold
        else:
            wish, _ = ray_policy.replica_queue_length_autoscaling_policy(context)
            wish = ray_policy._apply_scaling_factors(wish, context.current_num_replicas, self._config)
            if context.current_num_replicas == 0 and wish > 0:
                wanted = wish
            else:
                wanted, self._state = ray_policy._apply_delay_logic(
                    max(0, wish), target, self._config, self._state, _now=now_s
                )
        wanted = max(self._config.min_replicas, min(wanted, most))
        return wanted, f"{context.total_num_requests:.1f} ongoing requests"

    def _record(self, id: int, now_s: float, value: float) -> None:
        self._points.setdefault(id, deque()).append((now_s, value))

    def _total(self, path: Path, now_s: float) -> float:
        """Ongoing requests as the controller reckons them: the running replicas' series and the queue's, merged."""
        from ray.serve._private.autoscaling_metrics_merge import merge_and_aggregate_arrays

        running = {0, *(replica.id for replica in path.ready())}
        series = [points for id, points in self._sent.items() if id in running and points]
        if not series:
            return 0.0
        flat = np.array([point for points in series for point in points])
        offsets = np.cumsum([0, *(len(points) for points in series)])
        return float(merge_and_aggregate_arrays(flat[:, 0].copy(), flat[:, 1].copy(), offsets, now_s, "mean"))

    def _context(self, path: Path, target: int, total: float, now_s: float) -> Any:
        from ray.serve._private.common import DeploymentID
        from ray.serve.config import AutoscalingContext

        ready = path.ready()
        return AutoscalingContext(
            deployment_id=DeploymentID("replica", "model"),
            deployment_name="replica",
            app_name="model",
            current_num_replicas=len(ready),
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=total,
            total_queued_requests=float(len(path.waiting)),
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=self._config.min_replicas,
            capacity_adjusted_max_replicas=self._config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now_s,
            config=self._config,
        )
