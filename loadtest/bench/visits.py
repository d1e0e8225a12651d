"""One visit: start a server, wait until it is quiet, measure it at every point, check its answers, stop it."""

from __future__ import annotations

import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import psutil

from cluster.errors import OperatorError
from loadtest.bench.accounting import busy_s, settled, stolen_s, used_s
from loadtest.bench.contestants import Contestant
from loadtest.bench.generator import LoadFigures, LoadPlan
from loadtest.bench.process import Server
from loadtest.bench.result import Measurement, Point, Visit
from loadtest.bench.work import Prepared

WARM_CONNECTIONS = 8
_SPARE_S = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a visit goes. `rates` are open loops asked of every server, besides `open_share` of its own best rate."""

    seconds: float = 5.0
    warm_s: float = 1.5
    idle_s: float = 2.0
    quiet_tries: int = 8
    lead_s: float = 0.3
    connections: tuple[int, ...] = ()  # instead of the work's own
    formats: tuple[str, ...] = ()  # of these only
    open_share: float = 0.6
    rates: tuple[float, ...] = ()
    open_connections: int = 256


@dataclass(slots=True)
class BestRates:
    """The best closed-loop rate of each contestant and work in the first round, so that rounds ask the same."""

    found: dict[tuple[str, str], float] = field(default_factory=dict)

    def of(self, contestant: str, work: str, measured: Iterable[Measurement]) -> float:
        rates = (m.rps for m in measured if m.contestant == contestant and m.work == work and not m.point.rate)
        return self.found.setdefault((contestant, work), max(rates, default=0.0))


class Generator:
    """The load generator in a process of its own; a context."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.bench.generator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def load(self, plan: LoadPlan) -> LoadFigures:
        """Carry the plan out. Raises: OperatorError if the generator fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(plan) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise OperatorError("the load generator has ended") from None
        line = self._process.stdout.readline()
        if not line:
            raise OperatorError("the load generator ended without an answer")
        return msgspec.json.decode(line, type=LoadFigures)


def points(prepared: Prepared, contestant: Contestant, schedule: Schedule) -> tuple[Point, ...]:
    """The closed loops of a visit: every number of connections with the first format, the most with the others."""
    wanted = schedule.formats or prepared.work.formats
    formats = [name for name in prepared.work.formats if name in contestant.formats and name in wanted]
    connections = schedule.connections or prepared.work.connections
    found = [Point(name, count) for name in formats[:1] for count in connections]
    return (*found, *(Point(name, max(connections)) for name in formats[1:]))


def visit(
    contestant: Contestant,
    prepared: Prepared,
    round_number: int,
    schedule: Schedule,
    best: BestRates,
    folder: Path,
    say: Say,
) -> tuple[Visit, tuple[Measurement, ...]]:
    """Measure one contestant on one work.

    Raises: OperatorError if it does not start, or answers wrongly before, during or after the load.
    """
    planned = points(prepared, contestant, schedule)
    if not planned:
        raise OperatorError(f"{contestant.name}: none of the formats asked for")
    with Server(contestant, prepared, folder) as server, Generator() as generator:
        for name in dict.fromkeys(point.format for point in planned):
            server.check(name)
            generator.load(
                LoadPlan(server.port, server.request_files(name), WARM_CONNECTIONS, schedule.warm_s, lead_s=0.0)
            )
        idle = settled(server.tree, schedule.quiet_tries, schedule.idle_s)
        idle_cores = sum(idle.values())
        found = Visit(
            contestant.name,
            prepared.work.name,
            round_number,
            server.ready_s,
            idle_cores,
            idle,
            server.tree.memory(),
            Path(server.request_files(planned[0].format)[0]).stat().st_size,
        )
        say(
            f"ready in {server.ready_s:.1f} s, idle {idle_cores:.3f} cores, "
            f"{found.memory_bytes / 1e6:.0f} MB in {sum(m.processes for m in found.memory.values())} processes"
        )
        measured: list[Measurement] = []
        for point in planned:
            measured.append(_measure(server, generator, point, round_number, schedule, idle_cores))
            say(line(measured[-1]))
        rates = list(schedule.rates)
        if prepared.work.open_loop and schedule.open_share:
            own = best.of(contestant.name, prepared.work.name, measured)
            rates.append(float(f"{own * schedule.open_share:.3g}"))
        for rate in rates:
            point = Point(planned[0].format, schedule.open_connections, rate)
            measured.append(_measure(server, generator, point, round_number, schedule, idle_cores))
            say(line(measured[-1]))
        server.check(planned[0].format)
        return found, tuple(measured)


def line(m: Measurement) -> str:
    """One measurement in one line."""
    pace = f"open loop {m.point.rate:g}/s" if m.point.rate else f"{m.point.connections} connections"
    p50, p99 = ((1e3 * s if s is not None else float("nan")) for s in (m.latency.p50_s, m.latency.p99_s))
    kinds = ", ".join(f"{kind} {ms:.4f}" for kind, ms in sorted(m.cpu_ms_by_kind.items(), key=lambda kv: -kv[1])[:3])
    failed = f", FAILED {m.failed} {m.errors}" if m.failed else ""
    return (
        f"{m.point.format}, {pace}: {m.rps:.0f}/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms, "
        f"CPU {m.cpu_ms:.4f} ms/request ({kinds}), other work {m.other_share:.0%}{failed}"
    )


def _measure(
    server: Server, generator: Generator, point: Point, round_number: int, schedule: Schedule, idle_cores: float
) -> Measurement:
    plan = LoadPlan(
        server.port,
        server.request_files(point.format),
        point.connections,
        schedule.seconds,
        point.rate,
        schedule.lead_s,
        seed=round_number + 1,
    )
    before, busy, stolen, started_s = server.tree.times(), busy_s(), stolen_s(), time.monotonic()
    figures = generator.load(plan)
    took_s = time.monotonic() - started_s
    busy, stolen, used = busy_s() - busy, stolen_s() - stolen, used_s(before, server.tree.times())
    for number, sample in enumerate(figures.samples):
        if sample:
            server.compare(point.format, number, b64decode(sample))
    return measurement(
        server.contestant.name,
        server.prepared.work.name,
        round_number,
        point,
        figures,
        Cost(used, idle_cores, took_s, busy, stolen, psutil.cpu_count() or 1),
    )


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds used while a load ran: the server's by kind, the machine's, the hypervisor's; `took_s` seconds."""

    used_s: Mapping[str, float]
    idle_cores: float
    took_s: float
    busy_s: float
    stolen_s: float
    cores: int


def measurement(
    contestant: str, work: str, round_number: int, point: Point, figures: LoadFigures, cost: Cost
) -> Measurement:
    """The figures of one load, per answer and as shares."""
    answers = max(1, figures.answers)
    server_s = sum(cost.used_s.values())
    machine_s = cost.took_s * cost.cores
    refused = {status: count for status, count in figures.statuses.items() if not status.startswith("2")}
    return Measurement(
        contestant=contestant,
        work=work,
        round=round_number,
        point=point,
        rps=figures.rps,
        answers=figures.answers,
        failed=figures.failed,
        errors={**refused, **figures.errors},
        latency=figures.latency,
        lag_p99_s=figures.lag.p99_s if figures.lag else None,
        cpu_ms=1e3 * server_s / answers,
        idle_cpu_ms=1e3 * min(server_s, cost.idle_cores * cost.took_s) / answers,
        cpu_ms_by_kind={kind: 1e3 * seconds / answers for kind, seconds in cost.used_s.items()},
        server_cores=server_s / cost.took_s,
        generator_cores=figures.cpu_s / cost.took_s,
        other_share=max(0.0, cost.busy_s - server_s - figures.cpu_s) / machine_s,
        stolen_share=max(0.0, cost.stolen_s) / machine_s,
    )
