"""Ray Serve's side of autoscaling: replicas' statistics in, `ScalePolicy`'s count out.

Serve asks the policy in every turn of its control loop, with what `record_autoscaling_stats` returned on every replica.
It runs in Serve's controller process, so this module imports nothing heavy. What it decides is noted where Prism's
controller finds it. Serve pickles this module's classes and functions by value, again in every process that reads
Serve's details: no class that is decoded, and so carries the decoder's cache, may live here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from cluster.documents import DeploySettings
from cluster.policy.load import Load, ReplicaLoad, load_of
from cluster.policy.scale import ScalePolicy
from deployments.notes import NOTE_EVERY_S, NOTE_VALID_S, Note, read_notes, recalled, remember, write_note

log = logging.getLogger("ray.serve")

_FIELDS = tuple(field.name for field in fields(ReplicaLoad))


class ServeScale:
    """A Serve custom autoscaling policy around `ScalePolicy`.

    The policy's memory is kept outside of it: with every change of a setting or a bound Serve makes a new object of
    this class, and what was learnt, such as how long bursts stay away, must not go with the old one.

    `granted` bounds the count where others need the resources; the policy reckons with its own `max_replicas`, and with
    what it wanted instead of what it was granted: else it would want no more than that as soon as load falls for a
    moment, the bound would go, and come back with the next burst.
    """

    def __init__(self, granted: int = 0, **policy: float) -> None:
        self._policy = ScalePolicy(**policy)  # type: ignore[arg-type]
        self._bounded = granted > 0
        self._granted = granted or self._policy.max_replicas
        self._note: Note | None = None
        self._last: int | None = None  # decided

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        load = load_from(ctx)
        if self._note is None:
            self._note = self._noted(ctx.app_name)
        if self._bounded and load.target:
            load = replace(load, target=max(load.target, min(self._note.wants, self._policy.max_replicas)))
        now_s = time.monotonic()
        verdict = self._policy.decide(load, recalled(ctx.app_name, now_s), now_s)
        remember(ctx.app_name, verdict.memory, now_s)
        replicas = min(verdict.replicas, self._granted)
        changed = self._note.changed
        if self._last == 0 and ctx.target_num_replicas:  # Serve wakes a version at its first request without asking
            changed = f"0 -> {ctx.target_num_replicas}: up: requests waited for a version at zero"
        self._last = replicas
        if replicas != ctx.target_num_replicas:
            reason = verdict.reason
            if replicas < verdict.replicas:
                reason = f"granted {replicas} of the {verdict.replicas} it wants, others need the rest"
            elif replicas == load.target:  # the policy changes nothing, the grant does
                reason = f"granted all {replicas} it wants"
            changed = f"{ctx.target_num_replicas} -> {replicas}: {reason}"
            log.info("scale %s: %s", ctx.app_name, changed)
        self._write(ctx.app_name, self._note, Note(verdict.replicas, changed, time.time()))
        return replicas, {"reason": verdict.reason}

    def _noted(self, app: str) -> Note:
        """What was wanted before the bound was set."""
        if self._bounded:
            try:
                note = read_notes((app,)).get(app)
            except Exception:  # a decision must not fail for this
                log.exception("the last decision for %s could not be read", app)
            else:
                if note is not None and time.time() - note.at_s <= NOTE_VALID_S:
                    return replace(note, at_s=0.0)
        return Note(0)

    def _write(self, app: str, last: Note, note: Note) -> None:
        if replace(note, at_s=last.at_s) == last and note.at_s - last.at_s < NOTE_EVERY_S:
            return
        self._note = note
        try:
            write_note(app, note)
        except Exception:  # a decision must not fail because nobody can be told of it
            log.exception("the decision for %s could not be noted", app)


def load_from(ctx: Any) -> Load:
    """The version's load from Serve's AutoscalingContext."""
    metrics: Mapping[str, Mapping[Any, float]] = ctx.aggregated_metrics or {}
    reported = metrics.get("busy_share", {})
    reports = [
        ReplicaLoad(**{name: metrics.get(name, {}).get(replica, 0.0) for name in _FIELDS})
        for replica in ctx.running_replicas
        if replica in reported
    ]
    return load_of(reports, ctx.target_num_replicas, bool(ctx.total_num_requests))


def policy_arguments(deploy: DeploySettings, granted: int = 0) -> dict[str, float]:
    """Keyword arguments of `ServeScale` for a version's settings; `granted` 0: as many as it may have."""
    return {
        "min_replicas": deploy.min_replicas,
        "max_replicas": deploy.max_replicas,
        "target_utilisation": deploy.target_utilisation,
        "objective_s": deploy.objective_s,
        "down_after_s": deploy.down_after_s,
        "idle_after_s": deploy.idle_after_s,
        "deadline_s": deploy.default_deadline_s,
        "granted": granted,
    }
