"""Versions on a cluster in virtual time: arrivals, replicas that take a while to start, and who decides how many.

The world advances in steps of Serve's control loop. In each step a version's path goes through everything that
happened, replicas report, the scaler is asked, and replicas are ordered or stopped. Replicas that do not fit the
cluster wait, oldest first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Protocol

import numpy as np

from cluster.errors import InvalidRequest
from cluster.sim.outcome import Change, Instant, Objective, Outcome, outcome
from cluster.sim.path import Path, PathSettings, Times

LOOP_S = 0.2  # Serve's control loop sleeps 0.1 s and takes about as long on a busy head
SETTLE_S = 60.0  # what still waits at the end is answered before latencies are counted


class Scaler(Protocol):
    """Decides a version's replicas from what it can know."""

    def observe(self, path: Path, now_s: float) -> None:
        """Called every step, before `decide`: take measurements that are due."""

    def decide(self, path: Path, target: int, most: int, now_s: float) -> tuple[int, str]:
        """Replicas wanted (at most `most`) and why."""


@dataclass(frozen=True, slots=True)
class StartUp:
    """How long a replica takes from being ordered until it answers: log-normal around `median_s`."""

    median_s: float = 5.0
    spread: float = 0.15  # standard deviation of the logarithm

    def draw(self, rng: np.random.Generator) -> float:
        return self.median_s * exp(float(rng.normal(0.0, self.spread)))


@dataclass(frozen=True, slots=True)
class SimVersion:
    """One version's world. `initial` replicas answer from the start."""

    name: str
    due_s: Times
    path: PathSettings
    objective: Objective
    start_up: StartUp = StartUp()
    initial: int = 1
    max_replicas: int = 12


# Most replicas of each version, from what each asks for: the controller's `share()` in production.
Sharing = Callable[[Mapping[str, int]], Mapping[str, int]]


def simulate(
    versions: Sequence[tuple[SimVersion, Scaler]],
    seconds: int,
    seed: int = 0,
    slots: int | None = None,
    sharing: Sharing | None = None,
) -> dict[str, Outcome]:
    """Run for `seconds`, then let what waits be answered.

    Args:
        versions: Each with its scaler.
        seed: Of start-up times and batch times.
        slots: Replicas the cluster can hold altogether; None for no limit.
        sharing: Divides the slots; without it, first come, first served.

    Raises: InvalidRequest for two versions of one name.
    """
    names = [version.name for version, _ in versions]
    if len(set(names)) != len(names):
        raise InvalidRequest(f"versions: expected different names, got {', '.join(names)}")
    streams = np.random.SeedSequence(seed).spawn(len(versions))
    lives = {
        version.name: _Life(version, scaler, np.random.default_rng(stream))
        for (version, scaler), stream in zip(versions, streams, strict=True)
    }
    for step in range(int(seconds / LOOP_S)):
        now_s = step * LOOP_S
        if sharing is not None:
            granted = sharing({name: life.wanted for name, life in lives.items()})
            for name, life in lives.items():
                life.most = min(life.version.max_replicas, granted[name])
        for life in lives.values():
            life.step(now_s)
        held = sum(life.held for life in lives.values())
        for life in lives.values():
            held += life.order(now_s, None if slots is None else slots - held)
    return {name: life.end(seconds) for name, life in lives.items()}


class _Life:
    """One version on its way."""

    def __init__(self, version: SimVersion, scaler: Scaler, rng: np.random.Generator) -> None:
        self.version = version
        self.most = version.max_replicas
        self.wanted = self._target = version.initial
        self._scaler = scaler
        self._rng = rng
        self._path = Path(version.due_s, version.path, rng)
        self._changes: list[Change] = []
        self._instants: list[Instant] = []
        self._replica_seconds = 0.0
        for _ in range(version.initial):
            self._path.start(-version.start_up.median_s, version.start_up.median_s)

    @property
    def held(self) -> int:
        """Replicas that hold resources."""
        return len(self._path.replicas)

    def step(self, now_s: float) -> None:
        path = self._path
        path.advance(now_s)
        self._replica_seconds += self.held * LOOP_S
        self._scaler.observe(path, now_s)
        self.wanted, reason = self._scaler.decide(path, self._target, self.version.max_replicas, now_s)
        target = min(self.wanted, self.most)
        if target != self._target:
            self._changes.append(Change(now_s, self._target, target, reason))
            self._target = target
        live = path.starting()[::-1] + path.ready()[::-1]
        for replica in live[: max(0, len(live) - target)]:  # those that do not answer yet go first
            path.stop(replica)
        if now_s >= len(self._instants):
            rows = len(path.waiting) + path.in_flight_rows
            self._instants.append(Instant(now_s, len(path.ready()), self.held, self._target, rows))

    def order(self, now_s: float, free: int | None) -> int:
        """Start what is missing, as far as it fits. Returns: how many."""
        path = self._path
        missing = max(0, self._target - len(path.starting()) - len(path.ready()))
        count = missing if free is None else min(missing, max(0, free))
        for _ in range(count):
            path.start(now_s, self.version.start_up.draw(self._rng))
        return count

    def end(self, seconds: int) -> Outcome:
        """What came of it; requests of the last seconds are answered by the replicas there are."""
        self._path.advance(seconds + SETTLE_S)
        return outcome(
            self._path, seconds, self.version.objective, self._replica_seconds, self._changes, self._instants
        )
