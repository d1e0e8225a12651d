"""Ray Serve's side of autoscaling: replicas' statistics in, `ScalePolicy`'s count out.

Serve asks the policy about once a loop with what `record_autoscaling_stats` returned on every replica. It runs in
Serve's controller process, so this module imports nothing heavy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from cluster.documents import DeploySettings
from cluster.policy.scale import Load, Memory, ScalePolicy

log = logging.getLogger("ray.serve")

ROWS_IN, ROWS_DONE, QUEUE, BACKLOG, BUSY, CAPACITY = (
    "rows_per_s",
    "done_per_s",
    "queue_rows",
    "backlog_rows",
    "busy_share",
    "capacity_rows_per_s",
)
METRICS_INTERVAL_S = 0.5
LOOK_BACK_S = 2.0


class ServeScale:
    """A Serve custom autoscaling policy around `ScalePolicy`; it keeps the policy's memory between calls."""

    def __init__(self, **policy: float) -> None:
        self._policy = ScalePolicy(**policy)  # type: ignore[arg-type]
        self._memory = Memory()
        self._said = ""

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        verdict = self._policy.decide(load_of(ctx), self._memory, time.monotonic())
        self._memory = verdict.memory
        if verdict.replicas != ctx.target_num_replicas and verdict.reason != self._said:
            self._said = verdict.reason
            log.info("scale %s: %d -> %d (%s)", ctx.app_name, ctx.target_num_replicas, verdict.replicas, verdict.reason)
        return verdict.replicas, {"reason": verdict.reason}


def load_of(ctx: Any) -> Load:
    """The version's load from Serve's AutoscalingContext."""
    metrics: Mapping[str, Mapping[Any, float]] = ctx.aggregated_metrics or {}
    running = set(ctx.running_replicas)

    def total(name: str) -> float:
        return sum(value for replica, value in metrics.get(name, {}).items() if replica in running)

    reported = sum(1 for replica in metrics.get(BUSY, {}) if replica in running)
    return Load(
        replicas=reported,
        target=ctx.target_num_replicas,
        rows_per_s=total(ROWS_IN),
        done_per_s=total(ROWS_DONE),
        queue_rows=total(QUEUE),
        backlog_rows=total(BACKLOG),
        busy_share=total(BUSY) / reported if reported else 0.0,
        capacity_rows_per_s=max(metrics.get(CAPACITY, {}).values(), default=0.0),
        wanted=bool(ctx.total_num_requests),
    )


def policy_arguments(deploy: DeploySettings) -> dict[str, float]:
    """Keyword arguments of `ScalePolicy` for a version's settings."""
    return {
        "min_replicas": deploy.min_replicas,
        "max_replicas": deploy.max_replicas,
        "target_utilisation": deploy.target_utilisation,
        "down_after_s": deploy.down_after_s,
        "idle_after_s": deploy.idle_after_s,
    }
