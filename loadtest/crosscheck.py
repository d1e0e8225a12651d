"""Whether an independent load generator sees what ours sees: the same requests at the same Poisson rate, in turns.

The other is MLPerf LoadGen's server scenario (`loadtest.loadgen`). Both count latency from when a request was due, each
with its own clock, schedule, threads and HTTP client. Rounds alternate, so that a machine whose speed drifts drifts for
both, and the medians over the rounds are compared.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

from cluster import __version__
from cluster.errors import InvalidRequest, OperatorError
from loadtest.arrivals import Poisson
from loadtest.calls import check_host, fetch_json
from loadtest.plan import plan
from loadtest.result import LoadResult
from loadtest.runs import run
from loadtest.scenario import Scenario
from loadtest.schedule import Phase

MEASURES = ("p50", "p90", "p99")
TOLERANCE = 0.15  # of p99
_PREFIX = ":::MLLOG "


@dataclass(frozen=True, slots=True)
class Seen:
    """What one generator saw in one round: seconds by measure, and requests that had no good answer."""

    by: str
    latency_s: Mapping[str, float]
    requests: int
    failed: int
    invalid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agreement:
    """The medians over all rounds, in seconds, and whether the two agree."""

    rate: float
    seconds: float
    rounds: int
    ours: Mapping[str, float]
    theirs: Mapping[str, float]
    tolerance: float
    flaws: tuple[str, ...]

    @property
    def ratios(self) -> dict[str, float]:
        """Ours over LoadGen's."""
        return {name: self.ours[name] / self.theirs[name] for name in MEASURES}

    @property
    def agrees(self) -> bool:
        """Whether p99 is within the tolerance, whichever of the two is taken as right."""
        ratio = self.ratios["p99"]
        return max(ratio, 1 / ratio) <= 1 + self.tolerance


def crosscheck(
    scenario: Scenario,
    host: str,
    seconds: float = 20.0,
    rounds: int = 5,
    on_round: Callable[[Seen], None] | None = None,
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Send the scenario's requests at its rate from both generators, `rounds` times each.

    Raises: OperatorError without LoadGen, or if one of the two fails; else as `run`.
    """
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise OperatorError("crosscheck: LoadGen is not installed; pip install 'prism-serving[crosscheck]'")
    if rounds < 1 or seconds <= 0:
        raise InvalidRequest(f"crosscheck: expected rounds >= 1 and seconds > 0, got {rounds} and {seconds:g}")
    host = check_host(host)
    scenario = replace(scenario, loop="open", phases=(Phase("steady", seconds, Poisson()),), events=())
    seen: list[Seen] = []
    for i in range(rounds):
        seeded = replace(scenario, seed=scenario.seed + i)
        turns = [lambda s: ours(run(s, host)), lambda s: theirs(s, host, seconds)]
        for turn in turns if i % 2 == 0 else reversed(turns):
            seen.append(turn(seeded))
            if on_round:
                on_round(seen[-1])
    return agreement(seen, scenario.rate, seconds, rounds, tolerance)


def agreement(
    seen: Sequence[Seen], rate: float, seconds: float, rounds: int, tolerance: float = TOLERANCE
) -> Agreement:
    """The two sides' medians over their rounds, and what speaks against believing them."""
    sides = {by: [s for s in seen if s.by == by] for by in ("prism", "loadgen")}
    medians = {by: {m: median(s.latency_s[m] for s in side) for m in MEASURES} for by, side in sides.items()}
    flaws = [f"{s.by}: {s.failed} of {s.requests} requests failed" for s in seen if s.failed]
    # One late round of several is what medians are for.
    invalid = [s for s in sides["prism"] if s.invalid]
    if 2 * len(invalid) >= len(sides["prism"]):
        flaws += sorted({reason for s in invalid for reason in s.invalid})
    return Agreement(rate, seconds, rounds, medians["prism"], medians["loadgen"], tolerance, tuple(flaws))


def ours(result: LoadResult) -> Seen:
    """What Prism's own generator saw. Raises: OperatorError if it saw no answer."""
    latency = result.total.latency
    if latency.p50_s is None or latency.p90_s is None or latency.p99_s is None:
        raise OperatorError(f"crosscheck: no answers: {result.total.counts.errors}")
    counts = result.total.counts
    return Seen(
        "prism",
        {"p50": latency.p50_s, "p90": latency.p90_s, "p99": latency.p99_s},
        counts.offered,
        counts.failed + counts.dropped,
        result.verdict.reasons if result.verdict.status == "invalid" else (),
    )


def theirs(scenario: Scenario, host: str, seconds: float) -> Seen:
    """What LoadGen saw, in a process of its own. Raises: OperatorError."""
    count = max(round(scenario.rate * seconds), 1)
    with tempfile.TemporaryDirectory(prefix="prism-loadgen-") as name:
        folder = Path(name)
        plan(scenario, host, fetch_json(host)).write(folder / "plan.msgpack")
        arguments = [str(folder / "plan.msgpack"), str(scenario.rate), str(count), str(scenario.seed), str(folder)]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "loadtest.loadgen", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=seconds * 2 + scenario.generator.timeout_s + 60.0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise OperatorError(f"crosscheck: LoadGen did not finish within {error.timeout:.0f} s") from None
        if done.returncode != 0:
            lines = done.stdout.strip().splitlines()
            raise OperatorError(
                f"crosscheck: LoadGen ended with {done.returncode}: {lines[-1] if lines else 'nothing'}"
            )
        log = (folder / "mlperf_log_detail.txt").read_text()
        return loadgen_seen(log, int((folder / "failed.txt").read_text()))


def loadgen_seen(log: str, failed: int) -> Seen:
    """LoadGen's own figures, from its detailed log. Raises: OperatorError if they are not there."""
    entries = (json.loads(line[len(_PREFIX) :]) for line in log.splitlines() if line.startswith(_PREFIX))
    values = {entry["key"]: entry["value"] for entry in entries}
    try:
        latency_s = {f"p{p}": values[f"result_{p}.00_percentile_latency_ns"] / 1e9 for p in (50, 90, 99)}
        return Seen("loadgen", latency_s, int(values["result_query_count"]), failed)
    except KeyError as error:
        raise OperatorError(f"crosscheck: LoadGen's log has no {error}") from None


def versions() -> str:
    """What was compared, by version."""
    return f"Prism {__version__} on Locust {version('locust')}, LoadGen {version('mlcommons-loadgen')}"


def table(found: Agreement) -> list[list[str]]:
    """Rows for people: measure, Prism, LoadGen, ratio."""
    head = ["", "Prism", "LoadGen", "Prism / LoadGen"]
    ratios = found.ratios
    rows = [
        [m, f"{found.ours[m] * 1e3:.2f} ms", f"{found.theirs[m] * 1e3:.2f} ms", f"{ratios[m]:.3f}"] for m in MEASURES
    ]
    return [head, *rows]
