"""The whole plan of arrivals for a run: phases one after another, computed before the first request is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals import Arrivals, Poisson, Times

WARM_UP = "warm-up"


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a run with one arrival pattern, reported on its own."""

    name: str
    duration_s: float
    arrivals: Arrivals


@dataclass(frozen=True, slots=True)
class Window:
    """When a phase runs, in seconds since the start of the run; a warm-up is not measured."""

    name: str
    start_s: float
    end_s: float
    measured: bool = True

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Schedule:
    """Sorted due times (float64 seconds since the start) and the windows they fall into."""

    due_s: Times
    windows: tuple[Window, ...]

    @property
    def end_s(self) -> float:
        return self.windows[-1].end_s if self.windows else 0.0


def schedule(phases: Sequence[Phase], rate: float, seed: int, warmup_s: float = 0.0) -> Schedule:
    """Due times of all phases; the warm-up goes first, Poisson at the rate of the first phase's first arrivals.

    The same arguments give the same times. Every phase has its own random stream, so changing one phase leaves the
    others' arrivals as they were.
    """
    due: list[Times] = []
    windows: list[Window] = []
    at_s = 0.0
    if warmup_s > 0:
        first = phases[0].arrivals.due(rate, phases[0].duration_s, _stream(seed, 1))
        head_s = min(phases[0].duration_s, max(warmup_s, 1.0))
        warm_rate = max(float(np.count_nonzero(first < head_s)) / head_s, 1.0)
        due.append(Poisson().due(warm_rate, warmup_s, _stream(seed, 0)))
        windows.append(Window(WARM_UP, 0.0, warmup_s, measured=False))
        at_s = warmup_s
    for i, phase in enumerate(phases):
        due.append(at_s + phase.arrivals.due(rate, phase.duration_s, _stream(seed, i + 1)))
        windows.append(Window(phase.name, at_s, at_s + phase.duration_s))
        at_s += phase.duration_s
    return Schedule(np.concatenate(due) if due else np.empty(0), tuple(windows))


def thin(count: int, index: int, of: int) -> NDArray[np.int64]:
    """Which of `count` arrivals worker `index` of `of` sends: every arrival has exactly one sender.

    Dealing out one schedule keeps its shape whatever the number of workers; independent schedules at a fraction of
    the rate would only do so for Poisson arrivals.
    """
    return np.arange(index, count, of)


def gap_cv(due_s: Times) -> float:
    """Coefficient of variation of the gaps between arrivals: 0 evenly spaced, 1 Poisson. NaN for fewer than three."""
    if len(due_s) < 3:
        return float("nan")
    gaps = np.diff(due_s)
    return float(np.std(gaps) / np.mean(gaps))


def dispersion(due_s: Times, duration_s: float, window_s: float = 10.0) -> float:
    """Index of dispersion of counts: variance over mean of arrivals per window; 1 for Poisson.

    Large values over 10 s mean a rate that itself moves, which is what a scaler has to follow. NaN for fewer than
    three windows.
    """
    windows = int(duration_s / window_s + 1e-9)
    if windows < 3:
        return float("nan")
    counts = np.histogram(due_s, bins=windows, range=(0.0, windows * window_s))[0]
    mean = float(np.mean(counts))
    return float(np.var(counts)) / mean if mean else float("nan")


def _stream(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
