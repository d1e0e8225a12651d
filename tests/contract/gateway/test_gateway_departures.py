"""What becomes of a request whose client goes away: over HTTP, the wire and a real engine whose runtime is held."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gateway_fakes import ECHO, FakeRoutes, record_of, serving

from cluster.policy.batch import BatchPolicy
from cluster.settings import GatewaySettings
from deployments.engine import Engine
from deployments.metrics import Metrics
from deployments.wire.client import VersionClient
from deployments.wire.server import WireServer, WireSettings

SECRET = "correct horse"


def request_of(value: float) -> bytes:
    return (
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\n"
        b"Content-Length: 16\r\n\r\n" + np.full(4, value, "<f4").tobytes()
    )


class Held:
    """A runtime that doubles once `gate` is open, and remembers the first value of every row."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.seen: list[float] = []

    def run(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        assert self.gate.wait(20)
        self.seen += inputs[0][:, 0].tolist()
        return (inputs[0] * 2,)


class Whole:
    """Client to runtime and back: a gateway that has two micro-batches of one row in flight."""

    def __init__(self, port: int, arm: VersionClient, engine: Engine, runtime: Held, metrics: Metrics) -> None:
        self.port = port
        self.arm = arm
        self.engine = engine
        self.runtime = runtime
        self.metrics = metrics

    async def ask(self, value: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which one request was sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request_of(value))
        return reader, writer

    def lost(self) -> int:
        """Requests counted as given up by their clients."""
        return self.metrics.cell("m", "1", "stable").status.get(499, 0)


@pytest.fixture
async def path() -> AsyncIterator[Whole]:
    loop = asyncio.get_running_loop()
    runtime, metrics = Held(), Metrics("g")
    engine = Engine(runtime, ECHO, BatchPolicy(max_rows=1, max_queue_rows=64), loop)
    engine.start()
    with tempfile.TemporaryDirectory(prefix="pw") as folder:
        replica = await WireServer.listen(engine, ECHO, WireSettings(SECRET, str(Path(folder) / "r"), node_id="here"))
        arm = VersionClient(record_of("1"), GatewaySettings(in_flight_per_replica=2), SECRET, "here", lambda: None)
        arm.update({"r": replica.addresses()})
        routes = FakeRoutes()
        routes.arms_["m", "1"] = arm  # type: ignore[assignment]
        async with serving(lambda *_: None, routes, metrics) as (_, port):
            await until(lambda: arm.connected)
            yield Whole(port, arm, engine, runtime, metrics)
        runtime.gate.set()
        arm.close()
        await replica.drain(1.0)
        engine.close()


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, "it did not come true in time"
        await asyncio.sleep(0.002)


async def answered(reader: asyncio.StreamReader) -> bool:
    return (await asyncio.wait_for(reader.readline(), 20)).startswith(b"HTTP/1.1 200")


async def test_what_waits_at_the_replica_is_dropped_there_and_what_waits_here_is_never_sent(path: Whole) -> None:
    running = await path.ask(1.0)
    await until(lambda: path.engine.rows_in == 1)
    at_replica = await path.ask(2.0)
    await until(lambda: path.engine.queue_rows() == 1)
    at_gateway = await path.ask(3.0)
    await until(lambda: path.arm.waiting_rows == 1)
    staying = await path.ask(4.0)
    await until(lambda: path.arm.waiting_rows == 2)

    at_gateway[1].close()
    await until(lambda: path.arm.waiting_rows == 1)
    at_replica[1].close()  # its place is taken by the one that stays
    await until(lambda: path.arm.waiting_rows == 0 and path.lost() == 2)
    await until(lambda: path.engine.queue_rows() == 1)

    path.runtime.gate.set()
    assert await answered(running[0]) and await answered(staying[0])
    assert path.runtime.seen == [1.0, 4.0]
    assert path.engine.rows_in == 3
    for _, writer in (running, staying):
        writer.close()


async def test_what_is_being_computed_is_finished_and_forgotten(path: Whole) -> None:
    gone = await path.ask(1.0)
    await until(lambda: path.engine.rows_in == 1)
    gone[1].close()
    await until(lambda: path.lost() == 1)
    staying = await path.ask(2.0)
    await until(lambda: path.engine.queue_rows() == 1)
    path.runtime.gate.set()
    assert await answered(staying[0])
    assert path.runtime.seen == [1.0, 2.0]
    await until(lambda: (path.arm.in_flight_rows, path.arm.waiting_rows) == (0, 0))
    staying[1].close()


async def test_a_connection_that_goes_takes_all_its_pipelined_requests_along(path: Whole) -> None:
    running = await path.ask(1.0)
    await until(lambda: path.engine.rows_in == 1)
    _, writer = await path.ask(2.0)
    writer.write(request_of(3.0) * 5)
    await until(lambda: path.engine.queue_rows() + path.arm.waiting_rows == 6)
    writer.close()
    await until(lambda: path.engine.queue_rows() + path.arm.waiting_rows == 0 and path.lost() == 6)
    path.runtime.gate.set()
    assert await answered(running[0])
    assert path.runtime.seen == [1.0]
    running[1].close()
