"""The result of a load test: figures per phase and per second, the verdict, and what it was measured on."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import psutil

from cluster import __version__
from cluster.errors import InvalidRequest
from loadtest.events import Happened
from loadtest.gate import Verdict
from loadtest.measure import Counts, Percentiles, Timeline
from loadtest.server_metrics import ServerFigures, ServerTimeline

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """One phase. Counts and latencies are those of the requests due in it; `achieved_rps` counts the answers that
    arrived in it, `goodput_rps` those that kept the objective's limit. Latency counts from the due time.
    """

    name: str
    start_s: float
    duration_s: float
    offered_rps: float
    achieved_rps: float
    goodput_rps: float
    counts: Counts
    latency: Percentiles
    service: Percentiles
    lag: Percentiles
    missed: tuple[str, ...]
    server: ServerFigures

    @property
    def p50_s(self) -> float | None:
        return self.latency.p50_s

    @property
    def p99_s(self) -> float | None:
        return self.latency.p99_s


@dataclass(frozen=True, slots=True)
class Load:
    """What was offered: the arrivals' own statistics, measured part only. None where there are too few arrivals."""

    scenario: str
    about: str
    loop: str
    rate: float
    seed: int
    warmup_s: float
    duration_s: float
    objective: str
    limit_s: float | None
    targets: tuple[dict[str, Any], ...]
    phases: tuple[dict[str, Any], ...]
    generator: dict[str, Any]
    body_bytes: int  # the largest
    gap_cv: float | None
    dispersion_10s: float | None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the load came from; the server may share it."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    prism: str
    locust: str
    load_average: tuple[float, ...]
    ray: str = ""
    onnxruntime: str = ""
    numpy: str = ""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A whole run. `total` covers the measured phases together; `distribution` is the latency in seconds of answers
    and the share of answers that took longer. `targets` are the measured phases together, per target of a scenario with
    several; `about_server` is what the server said of itself.
    """

    host: str
    started: str  # UTC, ISO 8601
    load: Load
    verdict: Verdict
    total: PhaseResult
    phases: tuple[PhaseResult, ...]
    timeline: Timeline
    server: ServerTimeline
    generator_cpu: float | None
    distribution: tuple[tuple[float, ...], tuple[float, ...]]
    machine: Machine
    targets: tuple[PhaseResult, ...] = ()
    events: tuple[Happened, ...] = ()
    about_server: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def write(self, file: Path) -> None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(self)), indent=1) + b"\n")

    @classmethod
    def read(cls, file: Path) -> LoadResult:
        """Raises: InvalidRequest."""
        try:
            raw = msgspec.json.decode(file.read_bytes())
            if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
                raise InvalidRequest(f"{file}: not a load test result of schema {SCHEMA_VERSION}")
            return msgspec.convert(raw, cls)
        except OSError as error:
            raise InvalidRequest(f"{file}: {error.strerror}") from None
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"{file}: not a load test result: {error}") from None


def with_events(result: LoadResult, happened: Sequence[Happened]) -> LoadResult:
    """The result with its events. One that could not be done makes the run invalid."""
    failed = tuple(f"event {event.name} was not done: {event.error}" for event in happened if event.error)
    verdict = result.verdict
    if failed:
        notes = verdict.notes if verdict.status == "invalid" else (*verdict.reasons, *verdict.notes)
        reasons = verdict.reasons if verdict.status == "invalid" else ()
        verdict = Verdict("invalid", (*reasons, *failed), notes)
    return replace(result, events=tuple(happened), verdict=verdict)


def this_machine() -> Machine:
    return Machine(
        cpu=_cpu_name(),
        cores=os.cpu_count() or 0,
        memory_bytes=int(psutil.virtual_memory().total),
        system=f"{platform.system()} {platform.release()}",
        python=sys.version.split()[0],
        prism=__version__,
        locust=_version_of("locust"),
        load_average=tuple(round(load, 2) for load in os.getloadavg()),
        ray=_version_of("ray"),
        onnxruntime=_version_of("onnxruntime") or _version_of("onnxruntime-gpu"),
        numpy=_version_of("numpy"),
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
