"""The result of a benchmark, as it is kept in JSON: every single measurement, and what it was measured on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from cluster.errors import InvalidRequest
from loadtest.bench.accounting import Memory
from loadtest.bench.floor import FloorPoint
from loadtest.measure import Percentiles
from loadtest.result import Machine

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Point:
    """One load: its format, how many connections, and for an open loop its rate (0: closed loop)."""

    format: str
    connections: int
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One load on one server.

    Attributes:
        rps: 2xx answers per second of the measured part.
        failed: Requests that were not answered with 2xx, `errors` by status or reason.
        latency: Seconds; from the due time in an open loop.
        lag_p99_s: Open loop: how late requests were sent.
        cpu_ms: CPU milliseconds of all server processes per answer.
        idle_cpu_ms: The part of it that the server uses when nobody asks, by what was measured before the load.
        cpu_ms_by_kind: `cpu_ms` by kind of process.
        server_cores, generator_cores: CPU seconds per second.
        other_share: Share of the machine's CPU that neither server nor generator used: the noise.
        stolen_share: Share that the hypervisor gave to others.
    """

    contestant: str
    work: str
    round: int
    point: Point
    rps: float
    answers: int
    failed: int
    errors: dict[str, int]
    latency: Percentiles
    lag_p99_s: float | None
    cpu_ms: float
    idle_cpu_ms: float
    cpu_ms_by_kind: dict[str, float]
    server_cores: float
    generator_cores: float
    other_share: float
    stolen_share: float


@dataclass(frozen=True, slots=True)
class Visit:
    """One server started for one work: seconds until its first right answer, cores when idle, memory by kind."""

    contestant: str
    work: str
    round: int
    ready_s: float
    idle_cores: float
    idle_cores_by_kind: dict[str, float]
    memory: dict[str, Memory]
    body_bytes: int

    @property
    def memory_bytes(self) -> int:
        return sum(part.pss_bytes for part in self.memory.values())


@dataclass(frozen=True, slots=True)
class Failure:
    """A visit that came to nothing or was cut short, and why; or a contestant that was left out (round -1)."""

    contestant: str
    work: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Settings:
    """How it was measured: `python -m loadtest.bench` with `command` does it again."""

    command: str
    contestants: tuple[str, ...]
    works: tuple[str, ...]
    rounds: int
    seconds: float
    idle_s: float
    open_share: float
    rates: tuple[float, ...]
    open_connections: int


@dataclass(frozen=True, slots=True)
class BenchResult:
    """A whole benchmark. `ceiling_rps` is what the generator reached against a server that only answers."""

    started: str  # UTC, ISO 8601
    machine: Machine
    versions: dict[str, str]
    settings: Settings
    about: dict[str, str]  # contestants and works
    ceiling_rps: float
    ceiling_cpu_us: float  # the generator's own, per request
    floor: tuple[FloorPoint, ...]
    visits: tuple[Visit, ...]
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...]
    schema_version: int = SCHEMA_VERSION

    def write(self, file: Path) -> None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(self)), indent=1) + b"\n")

    @classmethod
    def read(cls, file: Path) -> BenchResult:
        """Raises: InvalidRequest."""
        try:
            raw: Any = msgspec.json.decode(file.read_bytes())
            if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
                raise InvalidRequest(f"{file}: not a benchmark result of schema {SCHEMA_VERSION}")
            return msgspec.convert(raw, cls)
        except OSError as error:
            raise InvalidRequest(f"{file}: {error.strerror}") from None
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"{file}: not a benchmark result: {error}") from None
