"""The load generator: one process, one thread, keep-alive connections to the loopback address, prepared bytes.

Closed loop: every connection sends its next request as soon as it has its answer. Open loop: requests are due by a
seeded Poisson schedule that waits for nothing; latency counts from when a request was due, also where it had to wait
for a free connection. Work under way at the end is waited for, so that a server's CPU can be divided by its answers.

    python -m loadtest.bench.generator --port 8000 --request FILE -c 64 -d 5 [--rate 1000]

prints one JSON line; without options, each line of standard input is a `LoadPlan` in JSON and gets a line.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
import time
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import click
import msgspec
import numpy as np

from cluster.errors import InvalidRequest
from loadtest.arrivals import Poisson
from loadtest.bench.alarm import Alarm
from loadtest.bench.answers import AnswerReader, Head, UnreadableAnswer
from loadtest.measure import Percentiles, percentiles

LOOPBACK = "127.0.0.1"
_MAX_CONNECTIONS, _MAX_SECONDS, _MAX_REQUESTS = 1024, 600.0, 20_000_000
_RECONNECT_S = 0.02
_PAST_END_S = 0.002  # the loop's timers may be early by a millisecond

now = time.perf_counter


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One load. `requests` are files, each one whole HTTP request; connection k sends the k-th of them, in turn.

    The first `lead_s` seconds are sent but not measured. `rate` 0 is a closed loop, else requests per second.
    """

    port: int
    requests: tuple[str, ...]
    connections: int = 64
    seconds: float = 5.0
    rate: float = 0.0
    lead_s: float = 0.3
    drain_s: float = 15.0
    seed: int = 1

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("port", 1 <= self.port <= 65535, "1 to 65535"),
            ("requests", len(self.requests) > 0, "at least one file"),
            ("connections", 1 <= self.connections <= _MAX_CONNECTIONS, f"1 to {_MAX_CONNECTIONS}"),
            ("seconds", 0 < self.seconds <= _MAX_SECONDS, f"above 0, at most {_MAX_SECONDS:g}"),
            ("rate", 0 <= self.rate * (self.seconds + self.lead_s) <= _MAX_REQUESTS, f"{_MAX_REQUESTS} requests"),
        ):
            if not ok:
                raise InvalidRequest(f"load.{name}: expected {expected}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """What came of a load.

    Attributes:
        ok: 2xx answers in the measured part (closed loop: that arrived in it; open loop: that were due in it).
        answers: All answers of any status, lead-in and drain included: what the server's CPU is divided by.
        statuses: All answers by status.
        errors: Requests that got no answer, by reason; connections refused.
        latency: Of the `ok` answers.
        lag: Open loop: how late requests were sent; large where connections or the generator ran out.
        cpu_s: Of the generator itself.
        samples: For each request of the plan a whole answer (head, empty line, body; base64), "" where there is none.
    """

    ok: int
    rps: float
    answers: int
    statuses: dict[str, int]
    errors: dict[str, int]
    latency: Percentiles
    lag: Percentiles | None
    elapsed_s: float
    cpu_s: float
    samples: tuple[str, ...]

    @property
    def failed(self) -> int:
        """Everything that was not a 2xx answer."""
        refused = sum(count for status, count in self.statuses.items() if not status.startswith("2"))
        return refused + sum(self.errors.values())


class Pace(Protocol):
    """Decides when a connection sends."""

    def free(self, client: Client) -> None:
        """`client` may send."""

    def answered(self, client: Client, done_s: float) -> None:
        """`client` has its 2xx answer; record it."""


class Client(asyncio.Protocol):
    """One connection; at most one request under way, due at `due_s`."""

    __slots__ = ("busy", "due_s", "load", "number", "reader", "request", "transport")
    transport: asyncio.WriteTransport  # from when it is connected

    def __init__(self, load: Load, number: int) -> None:
        self.load, self.number = load, number
        self.request = load.requests[number % len(load.requests)]
        self.reader = AnswerReader(load.heads)
        self.reader.keep = number < len(load.requests)
        self.busy = False
        self.due_s = 0.0

    def send(self, due_s: float) -> None:
        self.due_s, self.busy = due_s, True
        self.transport.write(self.request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        self.load.connected(self)

    def data_received(self, data: bytes) -> None:
        try:
            status = self.reader.feed(data)
        except UnreadableAnswer:
            self.load.broken(self, "unreadable")
            return
        if status:
            self.load.whole(self, status)

    def connection_lost(self, error: Exception | None) -> None:
        self.load.lost(self)


class Load:
    """One plan being carried out."""

    def __init__(self, plan: LoadPlan, loop: asyncio.AbstractEventLoop) -> None:
        self._plan, self._loop = plan, loop
        self.requests = [Path(file).read_bytes() for file in plan.requests]
        self.heads: dict[bytes, Head] = {}
        self.statuses: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.samples = [b""] * len(self.requests)
        self._clients: set[Client] = set()
        self._running = True
        self._idle = asyncio.Event()
        self._pace: Pace = Holding()

    async def connect(self) -> None:
        """Open all connections. Raises: OSError if the first is refused."""
        for number in range(self._plan.connections):
            await self._dial(number)

    def start(self, pace: Pace) -> None:
        self._pace = pace
        for client in sorted(self._clients, key=lambda client: client.number):
            pace.free(client)

    async def finish(self) -> None:
        """Send nothing more, wait for what is under way, close."""
        self._running = False
        self._see_whether_idle()
        try:
            async with asyncio.timeout(self._plan.drain_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        self.errors["unanswered"] += sum(client.busy for client in self._clients)
        for client in tuple(self._clients):
            client.busy = False
            client.transport.abort()

    def connected(self, client: Client) -> None:
        self._clients.add(client)
        if self._running:
            self._pace.free(client)

    def whole(self, client: Client, status: int) -> None:
        """An answer became whole."""
        done_s = now()
        client.busy = False
        self.statuses[status] += 1
        reader = client.reader
        if reader.keep:
            reader.keep = False
            self.samples[client.number] = reader.head + b"\r\n\r\n" + reader.body
        if 200 <= status < 300:
            self._pace.answered(client, done_s)
        if reader.closes:
            client.transport.close()
        elif self._running:
            self._pace.free(client)
        if not self._running:
            self._see_whether_idle()

    def broken(self, client: Client, reason: str) -> None:
        if client.busy:
            client.busy = False
            self.errors[reason] += 1
        client.transport.abort()

    def lost(self, client: Client) -> None:
        self._clients.discard(client)
        if client.busy:
            client.busy = False
            self.errors["closed"] += 1
        if self._running:
            self._loop.call_later(_RECONNECT_S, self._redial, client.number)
        else:
            self._see_whether_idle()

    def _see_whether_idle(self) -> None:
        if not any(client.busy for client in self._clients):
            self._idle.set()

    def _redial(self, number: int) -> None:
        if self._running:
            self._loop.create_task(self._try(number))

    async def _try(self, number: int) -> None:
        try:
            await self._dial(number)
        except OSError:
            self.errors["refused"] += 1
            self._loop.call_later(_RECONNECT_S, self._redial, number)

    async def _dial(self, number: int) -> None:
        await self._loop.create_connection(lambda: Client(self, number), LOOPBACK, self._plan.port)


class Holding:
    """Sends nothing: while connections are opened."""

    def free(self, client: Client) -> None:
        pass

    def answered(self, client: Client, done_s: float) -> None:
        pass


class ClosedLoop:
    """Sends on every free connection, until `end_s`."""

    def __init__(self, begin_s: float, end_s: float) -> None:
        self._begin_s, self._end_s = begin_s, end_s
        self.latencies_s: list[float] = []
        self.lags_s: list[float] = []

    def free(self, client: Client) -> None:
        at_s = now()
        if at_s < self._end_s:
            client.send(at_s)

    def answered(self, client: Client, done_s: float) -> None:
        if self._begin_s <= done_s < self._end_s:
            self.latencies_s.append(done_s - client.due_s)


class OpenLoop:
    """Sends what is due on connections that are free."""

    def __init__(self, due_s: list[float], begin_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s, self._begin_s = due_s, begin_s
        self._next = 0
        self._set_for = -1  # the request that the alarm is set for
        self._free: list[Client] = []
        self._alarm = Alarm(loop, self.send_due)
        self.latencies_s: list[float] = []
        self.lags_s: list[float] = []

    def free(self, client: Client) -> None:
        self._free.append(client)
        self.send_due()

    def answered(self, client: Client, done_s: float) -> None:
        if client.due_s >= self._begin_s:
            self.latencies_s.append(done_s - client.due_s)

    def send_due(self) -> None:
        """Send what is due, as far as connections are free, and set the alarm for what is due next."""
        due, at, free = self._due_s, self._next, self._free
        while free and at < len(due):
            at_s = now()
            if due[at] > at_s:
                if self._set_for != at:
                    self._set_for = at
                    self._alarm.after(due[at] - at_s)
                break
            client = free.pop()
            if client.transport.is_closing():
                continue
            client.send(due[at])
            if due[at] >= self._begin_s:
                self.lags_s.append(at_s - due[at])
            at += 1
        self._next = at

    def close(self) -> int:
        """Stop; returns how many due requests were never sent."""
        self._alarm.close()
        return len(self._due_s) - self._next


async def carry_out(plan: LoadPlan) -> LoadFigures:
    """Raises: OSError if nothing listens on the plan's port, or a request file cannot be read."""
    loop = asyncio.get_running_loop()
    load = Load(plan, loop)
    await load.connect()
    before_s = _cpu_s()
    started_s = now()
    begin_s = started_s + plan.lead_s
    end_s = begin_s + plan.seconds
    pace: ClosedLoop | OpenLoop
    if plan.rate:
        due = Poisson().due(plan.rate, plan.lead_s + plan.seconds, np.random.default_rng(plan.seed))
        pace = OpenLoop((due + started_s).tolist(), begin_s, loop)
    else:
        pace = ClosedLoop(begin_s, end_s)
    load.start(pace)
    await asyncio.sleep(end_s - now() + _PAST_END_S)
    if isinstance(pace, OpenLoop):
        pace.send_due()
    await load.finish()
    if isinstance(pace, OpenLoop):
        load.errors["never sent"] += pace.close()
    elapsed_s = now() - started_s
    return LoadFigures(
        ok=len(pace.latencies_s),
        rps=len(pace.latencies_s) / plan.seconds,
        answers=load.statuses.total(),
        statuses={str(status): count for status, count in sorted(load.statuses.items())},
        errors={reason: count for reason, count in load.errors.items() if count},
        latency=percentiles(np.array(pace.latencies_s)),
        lag=percentiles(np.array(pace.lags_s)) if plan.rate else None,
        elapsed_s=elapsed_s,
        cpu_s=_cpu_s() - before_s,
        samples=tuple(b64encode(sample).decode() for sample in load.samples),
    )


def run(plan: LoadPlan) -> LoadFigures:
    """`carry_out` on a loop of its own, without the garbage collector (nothing here makes cycles per request)."""
    import uvloop

    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(carry_out(plan))
    finally:
        gc.enable()


@click.command()
@click.option("--port", type=int, help="On 127.0.0.1.  [default: plans from standard input]")
@click.option("--request", "requests", multiple=True, help="File with a whole HTTP request; several take turns.")
@click.option("-c", "--connections", default=64, show_default=True)
@click.option("-d", "--seconds", default=5.0, show_default=True)
@click.option("--rate", default=0.0, help="Open loop: requests per second.  [default: closed loop]")
@click.option("--seed", default=1, show_default=True)
def main(port: int | None, requests: tuple[str, ...], connections: int, seconds: float, rate: float, seed: int) -> None:
    """Load a server on this machine and print figures as JSON."""
    if port is not None:
        _answer(LoadPlan(port, requests, connections, seconds, rate, seed=seed))
        return
    for line in sys.stdin:
        _answer(msgspec.json.decode(line, type=LoadPlan))


def _answer(plan: LoadPlan) -> None:
    sys.stdout.write(msgspec.json.encode(run(plan)).decode() + "\n")
    sys.stdout.flush()


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
