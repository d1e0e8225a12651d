"""The requests of a plan, sent by MLPerf LoadGen: a second opinion by a program that shares nothing with our generator.

    python -m loadtest.loadgen PLAN RATE COUNT SEED FOLDER

LoadGen's server scenario makes its own Poisson schedule, issues from its own thread, and counts latency from when a
query was due. What it cannot do is HTTP: for that there is a client on an event loop here, with as many connections as
are needed, opened and used once before the measurement. LoadGen's own logs are the result.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from httptools import HttpResponseParser

from loadtest.connections import Connections
from loadtest.plan import Plan

FAILED = "failed.txt"  # how many queries had no good answer, beside LoadGen's logs


class Connection(asyncio.Protocol):
    """One connection; `ended(connection, query, good)` after each answer, and when it is lost with one due."""

    def __init__(self, ended: Callable[[Connection, int, bool], None]) -> None:
        self._ended = ended
        self._query: int | None = None
        self._good = False
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def send(self, query: int, request: bytes) -> None:
        assert self._transport is not None
        self._query, self._good = query, False
        self._transport.write(request)

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._good = False
        self._finish()

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # anything below announces the real answer
            self._good = status < 300
            self._finish()

    def _finish(self) -> None:
        query, self._query = self._query, None
        if query is not None:
            self._ended(self, query, self._good)


class Client:
    """Sends queries on an event loop in a thread of its own; `answered(query)` is called there for each, once."""

    def __init__(self, plan: Plan, answered: Callable[[int], None]) -> None:
        connections = Connections(plan.host, plan.timeout_s)
        self._address = connections.address
        self._requests = [connections.head(call) + b"\r\n" + call.body for call in plan.calls]
        self._answered = answered
        self._idle: deque[Connection] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed = 0
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def warm(self, connections: int) -> None:
        """Open connections and send one request on each, one after another."""
        asyncio.run_coroutine_threadsafe(self._warm(connections), self.loop).result()

    def send(self, queries: Sequence[tuple[int, int]]) -> None:
        """Send request `index` for each (query, index), from any thread."""
        self.loop.call_soon_threadsafe(self._send, queries)

    async def _warm(self, connections: int) -> None:
        opened = [await self._connect() for _ in range(connections)]
        for connection in opened:
            done = asyncio.Event()
            connection._ended = lambda *_, done=done: done.set()
            connection.send(0, self._requests[0])
            await done.wait()
            connection._ended = self._end
        self._idle.extend(opened)

    async def _connect(self) -> Connection:
        _, connection = await self.loop.create_connection(lambda: Connection(self._end), *self._address)
        return connection

    def _send(self, queries: Sequence[tuple[int, int]]) -> None:
        for query, index in queries:
            while self._idle:
                connection = self._idle.pop()
                if connection.open:
                    connection.send(query, self._requests[index])
                    break
            else:
                task = self.loop.create_task(self._send_anew(query, index))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _send_anew(self, query: int, index: int) -> None:
        try:
            connection = await self._connect()
        except OSError:
            self.failed += 1
            self._answered(query)
        else:
            connection.send(query, self._requests[index])

    def _end(self, connection: Connection, query: int, good: bool) -> None:
        self.failed += not good
        self._answered(query)  # the last one ends the test, which then reads `failed`
        if connection.open:
            self._idle.append(connection)


def load(plan: Plan, rate: float, count: int, seed: int, folder: Path) -> None:
    """Have LoadGen send `count` queries at `rate` a second; its logs and the number of failures go into `folder`."""
    import mlperf_loadgen as mlperf

    def answered(query: int) -> None:
        mlperf.QuerySamplesComplete([mlperf.QuerySampleResponse(query, 0, 0)])

    client = Client(plan, answered)
    client.warm(plan.connections)
    sut = mlperf.ConstructSUT(lambda samples: client.send([(s.id, s.index) for s in samples]), lambda: None)
    library = mlperf.ConstructQSL(len(plan.calls), len(plan.calls), lambda _: None, lambda _: None)
    logs = mlperf.LogSettings()
    logs.enable_trace = False
    logs.log_output.outdir = str(folder)
    mlperf.StartTestWithLogSettings(sut, library, _settings(mlperf, rate, count, seed, plan.timeout_s), logs)
    mlperf.DestroyQSL(library)
    mlperf.DestroySUT(sut)
    (folder / FAILED).write_text(f"{client.failed}\n")


def _settings(mlperf: Any, rate: float, count: int, seed: int, timeout_s: float) -> Any:
    settings = mlperf.TestSettings()
    settings.scenario = mlperf.TestScenario.Server
    settings.mode = mlperf.TestMode.PerformanceOnly
    settings.server_target_qps = rate
    settings.server_target_latency_ns = int(timeout_s * 1e9)  # the two are compared, not judged
    settings.min_query_count = count
    settings.min_duration_ms = 0
    settings.qsl_rng_seed, settings.sample_index_rng_seed, settings.schedule_rng_seed = seed, seed + 1, seed + 2
    return settings


def main(plan: str, rate: str, count: str, seed: str, folder: str) -> NoReturn:
    load(Plan.read(Path(plan)), float(rate), int(count), int(seed), Path(folder))
    sys.exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
