"""When requests are due: pure, seeded arrival patterns.

Each pattern turns a rate, a duration and a random generator into sorted due times. Rates inside a pattern (`times`,
`low`, `high`, ...) are multiples of the rate it is given, so that one number scales a whole scenario.

Which pattern for what: gaps drawn independently (constant, Poisson, Gamma) average out within seconds, so they
exercise queues and batching; only patterns whose rate itself moves (MMPP, diurnal, step, ramp) exercise scaling.
`loadtest.schedule` has the two figures that tell them apart.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from math import inf, pi
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest

Times: TypeAlias = NDArray[np.float64]


class Arrivals(Protocol):
    """An arrival pattern."""

    def due(self, rate: float, duration_s: float, rng: np.random.Generator) -> Times:
        """Sorted due times, float64 seconds in [0, duration_s), when 1.0 means `rate` requests a second."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Evenly spaced."""

    times: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(times=self.times)

    def due(self, rate: float, duration_s: float, rng: np.random.Generator) -> Times:
        rate *= self.times
        return np.arange(int(rate * duration_s + 1e-9), dtype=np.float64) / rate


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent clients: exponential gaps."""

    times: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(times=self.times)

    def due(self, rate: float, duration_s: float, rng: np.random.Generator) -> Times:
        return _varying(np.array([rate * self.times]), np.array([duration_s]), rng)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma-distributed gaps with coefficient of variation `cv`: 1 is Poisson, below it regular, above it bursty."""

    cv: float = 2.0
    times: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(times=self.times, cv=self.cv)

    def due(self, rate: float, duration_s: float, rng: np.random.Generator) -> Times:
        gap_s = 1.0 / (rate * self.times)
        shape = 1.0 / self.cv**2
        # Started early, so that time 0 is an arbitrary moment of the process and not the moment of an arrival.
        start_s = -20.0 * gap_s * max(1.0, self.cv**2)
        parts, at_s = [], start_s
        while at_s < duration_s:
            count = int((duration_s - at_s) / gap_s * 1.1) + 64
            parts.append(at_s + np.cumsum(rng.gamma(shape, gap_s / shape, count)))
            at_s = float(parts[-1][-1])
        return _within(np.concatenate(parts), duration_s)


@dataclass(frozen=True, slots=True)
class Mmpp:
    """Markov-modulated Poisson: `low` and `high` rates by turns, each for an exponentially distributed while."""

    low: float = 0.6
    high: float = 3.0
    low_s: float = 50.0
    high_s: float = 10.0

    def __post_init__(self) -> None:
        _check_positive(high=self.high, low_s=self.low_s, high_s=self.high_s)
        if self.low < 0:
            raise InvalidRequest(f"low: expected 0 or more, got {self.low}")

    def due(self, rate: float, duration_s: float, rng: np.random.Generator) -> Times:
        is_high = bool(rng.random() < self.high_s / (self.low_s + self.high_s))
        rates, spans_s, at_s = [], [], 0.0
        while at_s < duration_s:
            span_s = min(float(rng.exponential(self.high_s if is_high else self.low_s)), duration_s - at_s)
            rates.append(rate * (self.high if is_high else self.low))
            spans_s.append(span_s)
            at_s += max(span_s, 1e-9)
            is_high = not is_high
        return _within(_varying(np.array(rates), np.array(spans_s), rng), duration_s)


@dataclass(frozen=True, slots=True)
class Spike:
    """For `for_s` seconds from `at_s`, the rate is `times` as high."""

    at_s: float
    for_s: float
    times: float

    def __post_init__(self) -> None:
        _check_positive(for_s=self.for_s, times=self.times)


@dataclass(frozen=True, slots=True)
class Diurnal:
    """A day in `period_s` seconds, from night to night, with slow noise and spikes.

    `amplitude` (0..1) is how far the rate swings around its mean, `noise` the standard deviation of the logarithm of
    an autoregressive factor that changes every second.
    """

    times: float = 1.0
    amplitude: float = 0.6
    period_s: float = 600.0
    noise: float = 0.0
    spikes: tuple[Spike, ...] = ()

    def __post_init__(self) -> None:
        _check_positive(times=self.times, period_s=self.period_s)
        if not 0 <= self.amplitude <= 1:
            raise InvalidRequest(f"amplitude: expected 0 to 1, got {self.amplitude}")
        if self.noise < 0:
            raise InvalidRequest(f"noise: expected 0 or more, got {self.noise}")

    def due(self, rate: float, duration_s: float, rng: np.random.Generator) -> Times:
        step_s = min(1.0, self.period_s / 200)
        at_s = np.arange(0.0, duration_s, step_s)
        rates = rate * self.times * (1 - self.amplitude * np.cos(2 * pi * at_s / self.period_s))
        if self.noise:
            rates *= np.exp(_autoregressive(len(at_s), 0.9**step_s, self.noise, rng) - self.noise**2 / 2)
        for spike in self.spikes:
            rates[(at_s >= spike.at_s) & (at_s < spike.at_s + spike.for_s)] *= spike.times
        return _varying(rates, np.diff(np.append(at_s, duration_s)), rng)


@dataclass(frozen=True, slots=True)
class Step:
    """Poisson at each of `levels` for an equal share of the duration."""

    levels: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)

    def __post_init__(self) -> None:
        if not self.levels or any(level < 0 for level in self.levels):
            raise InvalidRequest(f"levels: expected multiples of the rate, 0 or more, got {list(self.levels)}")

    def due(self, rate: float, duration_s: float, rng: np.random.Generator) -> Times:
        return _varying(rate * np.array(self.levels), np.full(len(self.levels), duration_s / len(self.levels)), rng)


@dataclass(frozen=True, slots=True)
class Ramp:
    """Poisson whose rate moves in a straight line from `start` to `end`."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.start < 0 or self.end < 0:
            raise InvalidRequest(f"start, end: expected 0 or more, got {self.start}, {self.end}")

    def due(self, rate: float, duration_s: float, rng: np.random.Generator) -> Times:
        steps = 200
        middle = (np.arange(steps) + 0.5) / steps
        return _varying(rate * (self.start + (self.end - self.start) * middle), np.full(steps, duration_s / steps), rng)


@dataclass(frozen=True, slots=True)
class Replay:
    """Arrivals recorded in a CSV file (`.gz` too): a column `t_s` of times, or `minute` and `count`.

    Time is stretched by `scale_time` (0.1 plays an hour in six minutes, at ten times the rate), then each arrival is
    kept or repeated so that the rate is `scale_rate` as high. The rate is the file's own, not the scenario's.
    """

    file: str
    scale_time: float = 1.0
    scale_rate: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(scale_time=self.scale_time, scale_rate=self.scale_rate)

    def due(self, rate: float, duration_s: float, rng: np.random.Generator) -> Times:
        recorded = read_trace(Path(self.file), rng) * self.scale_time
        whole, part = divmod(self.scale_rate, 1.0)
        copies = int(whole) + (rng.random(len(recorded)) < part)
        due = np.repeat(recorded, copies)
        if len(recorded) > 1 and self.scale_rate > 1:
            # Copies at the very same instant would make bursts that the recording did not have.
            due = due + rng.random(len(due)) * float(np.mean(np.diff(recorded)))
        return _within(np.sort(due), duration_s)


PATTERNS: dict[str, type[Arrivals]] = {
    "constant": Constant,
    "poisson": Poisson,
    "gamma": Gamma,
    "mmpp": Mmpp,
    "diurnal": Diurnal,
    "step": Step,
    "ramp": Ramp,
    "replay": Replay,
}


def read_trace(file: Path, rng: np.random.Generator) -> Times:
    """Sorted arrival times of a trace file in seconds, the first at 0; per-minute counts are spread at random.

    Raises: InvalidRequest if the file cannot be read or has neither kind of column.
    """
    try:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as stream:
            rows = list(csv.DictReader(stream))
        if rows and "t_s" in rows[0]:
            times = np.sort(np.array([float(row["t_s"]) for row in rows]))
        elif rows and {"minute", "count"} <= rows[0].keys():
            minutes = np.array([float(row["minute"]) for row in rows])
            starts = np.repeat(minutes * 60.0, [int(row["count"]) for row in rows])
            times = np.sort(starts + rng.random(len(starts)) * 60.0)
        else:
            raise InvalidRequest(f"replay: {file}: expected a column t_s, or columns minute and count")
    except OSError as error:
        raise InvalidRequest(f"replay: {file}: {error.strerror or error}") from None
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"replay: {file}: {error}") from None
    return times - times[0] if len(times) else times


def _varying(rates: Times, spans_s: Times, rng: np.random.Generator) -> Times:
    """A Poisson process whose rate is `rates[i]` for `spans_s[i]` seconds: per span a Poisson count, spread evenly."""
    counts = rng.poisson(np.maximum(rates, 0.0) * spans_s)
    starts_s = np.concatenate(([0.0], np.cumsum(spans_s)[:-1]))
    due = np.repeat(starts_s, counts) + rng.random(int(counts.sum())) * np.repeat(spans_s, counts)
    return np.sort(due)


def _within(times: Times, duration_s: float) -> Times:
    return times[(times >= 0) & (times < duration_s)]


def _autoregressive(count: int, keep: float, deviation: float, rng: np.random.Generator) -> Times:
    """A stationary AR(1) series with the given standard deviation."""
    shocks = rng.normal(0.0, deviation * (1 - keep**2) ** 0.5, count)
    series = np.empty(count)
    value = rng.normal(0.0, deviation)
    for i, shock in enumerate(shocks):
        value = keep * value + shock
        series[i] = value
    return series


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < inf:
            raise InvalidRequest(f"{name}: expected a number above 0, got {value}")
