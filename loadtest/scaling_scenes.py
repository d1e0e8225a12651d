"""What autoscaling is compared on: arrival patterns, a cost curve, start-up times, and who decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.costs import CostCurve
from cluster.policy.batch import BatchPolicy
from cluster.policy.scale import ScalePolicy
from cluster.sim.outcome import Objective, Outcome
from cluster.sim.path import PathSettings
from cluster.sim.scalers import PolicyScaler, Prompt
from cluster.sim.world import Scaler, SimVersion, StartUp, simulate
from loadtest.arrivals import Arrivals, Diurnal, Gamma, Mmpp, Ramp, Spike, Step
from loadtest.ray_scaling import RayScaler, RaySettings

# A network for which batches pay: 100 rows a second one by one, 229 in batches of 16.
COSTS = CostCurve.of({1: 0.010, 2: 0.014, 4: 0.022, 8: 0.038, 16: 0.070})
BATCH_ROWS = 16
OBJECTIVE_S = 0.25
MAX_REPLICAS = 12

PATTERNS: dict[str, tuple[str, Arrivals]] = {
    "step": ("the rate, four times the rate, the rate again", Step((1.0, 4.0, 1.0))),
    "ramp": ("from half the rate to four times", Ramp(0.5, 4.0)),
    "gamma": ("bursty gaps (CV 4) at one and a half times the rate", Gamma(4.0, times=1.5)),
    "mmpp": ("0.6 and 3 times the rate by turns, for 50 s and 10 s on average", Mmpp()),
    "diurnal": (
        "a day in ten minutes with noise and three spikes",
        Diurnal(
            times=1.5,
            amplitude=0.6,
            period_s=600.0,
            noise=0.1,
            spikes=(Spike(150.0, 20.0, 2.0), Spike(320.0, 30.0, 1.8), Spike(480.0, 15.0, 3.0)),
        ),
    ),
}

# Found by trying: the fewest seconds outside the objective over patterns and seeds that are not in the table.
RAY_TUNED = RaySettings(
    target_ongoing_requests=4.0,
    upscale_delay_s=0.0,
    downscale_delay_s=300.0,
    look_back_period_s=5.0,
    metrics_interval_s=0.5,
)

CONTESTANTS: dict[str, tuple[str, Callable[[], Scaler]]] = {
    "prism": (
        "ScalePolicy with the defaults of `prism deploy`, objective 250 ms",
        lambda: PolicyScaler(
            ScalePolicy(1, MAX_REPLICAS, objective_s=OBJECTIVE_S, down_after_s=60.0), COSTS.rows_per_s(BATCH_ROWS)
        ),
    ),
    "ray": ("Ray Serve's default policy with its default settings", lambda: RayScaler(RaySettings(), MAX_REPLICAS)),
    "ray-tuned": (
        "the same policy, tuned: target_ongoing_requests 4, upscale_delay_s 0, downscale_delay_s 300, "
        "look_back_period_s 5, metrics_interval_s 0.5",
        lambda: RayScaler(RAY_TUNED, MAX_REPLICAS),
    ),
    "prompt": (
        "a bound for whoever keeps nothing to spare: it sees the coming second's requests, has what they need at 70 % "
        "and, when that rises, orders all there may be at once",
        lambda: Prompt(COSTS.rows_per_s(BATCH_ROWS)),
    ),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """One pattern at a rate (requests per second that 1.0 means), with a start-up time."""

    pattern: str
    rate: float = 100.0
    start_s: float = 5.0
    seconds: int = 600


@dataclass(frozen=True, slots=True)
class Figures:
    """One contestant in one scene, added up over `seeds`; `p99_s` is the worst, None if more than 1 % failed."""

    scene: Scene
    contestant: str
    seeds: tuple[int, ...]
    outside: int
    replica_seconds: float
    changes: int
    flaps: int
    requests: int
    failed: int
    p99_s: float | None


def play(scene: Scene, contestant: str, seed: int) -> Outcome:
    """One simulated run."""
    due_s = PATTERNS[scene.pattern][1].due(scene.rate, scene.seconds, np.random.default_rng(seed))
    version = SimVersion(
        name="model",
        due_s=due_s,
        path=PathSettings(BatchPolicy(BATCH_ROWS, costs=COSTS)),
        objective=Objective(OBJECTIVE_S),
        start_up=StartUp(scene.start_s),
        max_replicas=MAX_REPLICAS,
    )
    return simulate([(version, CONTESTANTS[contestant][1]())], scene.seconds, seed)["model"]


def figures(scene: Scene, contestant: str, seeds: Sequence[int], outcomes: Sequence[Outcome]) -> Figures:
    """The outcomes of all seeds added up."""
    worst = max(outcome.p99_s for outcome in outcomes)
    return Figures(
        scene=scene,
        contestant=contestant,
        seeds=tuple(seeds),
        outside=sum(len(outcome.outside) for outcome in outcomes),
        replica_seconds=round(sum(outcome.replica_seconds for outcome in outcomes), 1),
        changes=sum(len(outcome.changes) for outcome in outcomes),
        flaps=sum(outcome.flaps for outcome in outcomes),
        requests=sum(outcome.requests for outcome in outcomes),
        failed=sum(outcome.failed for outcome in outcomes),
        p99_s=round(worst, 4) if worst != float("inf") else None,
    )
