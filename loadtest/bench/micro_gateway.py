"""A gateway's whole Python of one request, without its sockets: from the bytes of a request to the bytes of its answer.

An entry point like `micro`: it looks inside the server. Connections have a transport that counts and drops; the replica
is stood in for by frames that were made beforehand, so that only the gateway is timed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import uvloop

from cluster.documents import VersionRecord
from cluster.settings import Settings
from loadtest.bench.formats import request_bytes

if TYPE_CHECKING:
    from deployments.wire.frames import Frame

CONNECTIONS = 64


class _Transport:
    """Takes what is written."""

    def __init__(self) -> None:
        self.writes = 0

    def write(self, data: object) -> None:
        self.writes += 1

    writelines = write

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return False


class _Replica:
    """A link whose frames are answered as soon as the client has sent them, by answers kept per number of rows."""

    leaving = False
    key = 1
    replica = "r"

    def __init__(self, record: VersionRecord) -> None:
        self._record = record
        self.addresses: dict[str, str] = {}
        self._answers: dict[int, tuple[bytes, Any]] = {}
        self.sent: list[tuple[int, int]] = []  # call id, rows

    def send(self, buffers: list[bytes]) -> None:
        from deployments.wire.frames import HEADER, Infer, Kind, decode_meta

        raw = b"".join(buffers)
        _, _, kind, meta_bytes, _, call_id = HEADER.unpack_from(raw)
        if kind == Kind.INFER:
            meta = decode_meta(_frame(Kind.INFER, call_id, raw[HEADER.size : HEADER.size + meta_bytes]), Infer)
            self.sent.append((call_id, sum(meta.rows)))

    def answers(self) -> list[Frame]:
        """The answers to everything that was sent."""
        from deployments.wire.frames import Kind

        sent, self.sent = self.sent, []
        return [_frame(Kind.RESULT, call_id, *self._answer(rows)) for call_id, rows in sent]

    def _answer(self, rows: int) -> tuple[bytes, Any]:
        from deployments.wire.batches import MicroBatch, MicroResult
        from deployments.wire.frames import HEADER, empty_aligned
        from deployments.wire.layout import encode_result

        found = self._answers.get(rows)
        if found is None:
            spec = self._record.signature.outputs[0]
            result = MicroResult((np.zeros((rows, *spec.shape[1:]), spec.numpy),))
            batch = MicroBatch((1,) * rows, (30.0,) * rows, (), (), 0, ())
            raw = b"".join(encode_result(0, batch, result, self._record.signature, 0, 1 << 30))
            end = HEADER.size + HEADER.unpack_from(raw)[3]
            payload = empty_aligned(len(raw) - end)
            payload[:] = np.frombuffer(raw, np.uint8, offset=end)
            found = self._answers[rows] = (raw[HEADER.size : end], payload)
        return found


def _frame(kind: Any, call_id: int, meta: bytes, payload: Any = None) -> Frame:
    from deployments.wire.frames import Frame

    return Frame(kind, call_id, meta, payload)


def gateway_call(record: VersionRecord, format_name: str, shape: tuple[int, ...]) -> Callable[[], object]:
    """A call that takes one request on each of `CONNECTIONS` connections through a gateway and back."""
    loop = uvloop.new_event_loop()
    round_trip = loop.run_until_complete(_prepare(record, format_name, shape))
    return lambda: loop.run_until_complete(round_trip())


async def _prepare(record: VersionRecord, format_name: str, shape: tuple[int, ...]) -> Callable[[], Any]:
    from uvicorn import Config
    from uvicorn.server import ServerState

    from deployments.gateway.http_protocol import GatewayProtocol
    from deployments.gateway.inference import Inference
    from deployments.metrics import Metrics
    from deployments.wire.client import VersionClient
    from deployments.wire.frames import Welcome

    settings = Settings()
    client = VersionClient(record, settings.gateway, "0" * 32, "node", lambda: None)
    replica = _Replica(record)
    client.link_up(replica, Welcome("i", record.digest, 1 << 30, 0))  # type: ignore[arg-type]
    document = SimpleNamespace(name="m", labels={}, versions={record.version: record})
    dispatcher = SimpleNamespace(
        route=lambda target, key: client, document=lambda model: document, models=lambda: ["m"]
    )
    inference = Inference(dispatcher, settings, Metrics())
    config = Config("", ws="none", lifespan="off", log_config=None, interface="asgi3")
    config.load = lambda: None  # type: ignore[method-assign]
    config.loaded, config.loaded_app, config.ws_protocol_class = True, None, None
    connections = [GatewayProtocol(config, ServerState(), {}, inference=inference) for _ in range(CONNECTIONS)]
    transports = [_Transport() for _ in connections]
    for connection, transport in zip(connections, transports, strict=True):
        connection.connection_made(transport)  # type: ignore[arg-type]
    row = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    raw = request_bytes(format_name, "/v2/models/m/infer", 1, row)

    async def round_trip() -> None:
        before = transports[-1].writes
        for connection in connections:
            connection.data_received(raw)
        while transports[-1].writes == before:
            await asyncio.sleep(0)  # the client's turn: micro-batches leave
            for frame in replica.answers():
                client.link_frame(replica, frame)  # type: ignore[arg-type]

    return round_trip
