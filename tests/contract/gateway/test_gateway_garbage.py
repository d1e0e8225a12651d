from __future__ import annotations

import asyncio
import gc
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gateway_fakes import ECHO, FakeRoutes, record_of, serving

from cluster.errors import InvalidRequest
from cluster.policy.batch import BatchPolicy
from cluster.settings import GatewaySettings
from deployments.engine import Engine
from deployments.wire.client import VersionClient
from deployments.wire.server import WireServer, WireSettings

REQUESTS = 1000
SECRET = "correct horse"


class Doubling:
    """Fails on negative numbers."""

    def run(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if (inputs[0] < 0).any():
            raise InvalidRequest("negative")
        return (inputs[0] * 2,)


class Client(asyncio.Protocol):
    """Sends a request when the answer to the last one came."""

    def __init__(self, request: bytes, status: bytes) -> None:
        self.request = request
        self.status = status
        self.left = REQUESTS
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:  # answers are small: they come whole
        assert data.startswith(b"HTTP/1.1 " + self.status)
        self.left -= 1
        if self.left:
            self.transport.write(self.request)
        else:
            self.done.set_result(None)


@pytest.mark.parametrize(
    ("path", "sign", "status"),
    [
        (b"/v2/models/m/infer", 1, b"200"),
        (b"/v2/models/zz/infer", 1, b"404"),
        (b"/v2/models/m/infer", -1, b"400"),
    ],
)
async def test_requests_leave_nothing_for_the_collector(path: bytes, sign: int, status: bytes) -> None:
    body = (sign * np.arange(4, dtype="<f4")).tobytes()
    request = b"POST %b HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\nContent-Length: 16\r\n\r\n" % path
    loop = asyncio.get_running_loop()
    engine = Engine(Doubling(), ECHO, BatchPolicy(max_rows=16, max_queue_rows=64), loop)
    engine.start()
    with tempfile.TemporaryDirectory(prefix="pw") as folder:
        replica = await WireServer.listen(engine, ECHO, WireSettings(SECRET, str(Path(folder) / "r"), node_id="here"))
        arm = VersionClient(record_of("1"), GatewaySettings(), SECRET, "here", lambda: None)
        arm.update({"r": replica.addresses()})
        routes = FakeRoutes()
        routes.arms_["m", "1"] = arm
        async with serving(lambda *_: None, routes) as (_, port):
            while not arm.ready:
                await asyncio.sleep(0.001)
            try:
                gc.collect()
                gc.disable()
                gc.set_debug(gc.DEBUG_SAVEALL)
                clients = [
                    (await loop.create_connection(lambda: Client(request + body, status), "127.0.0.1", port))[1]
                    for _ in range(4)
                ]
                await asyncio.wait_for(asyncio.gather(*(client.done for client in clients)), 30)
                gc.collect()
                found = Counter(type(each).__name__ for each in gc.garbage)
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
            for client in clients:
                client.transport.close()
        arm.close()
        await replica.drain(1.0)
        engine.close()
    assert found.total() < REQUESTS / 4, f"in cycles after {4 * REQUESTS} requests: {found.most_common(8)}"
