"""A gateway's HTTP server over versions that answer by themselves: what protocol tests talk to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.documents import DeploySettings, ModelDocument, VersionRecord, VersionStatus
from cluster.errors import Cancelled, ModelNotFound, ModelNotReady, ServingError
from cluster.names import Target
from cluster.settings import GatewaySettings, HttpSettings, Settings
from cluster.splits import TrafficSplit
from cluster.tensors import ANY, Signature, TensorSpec
from deployments.call import Reply, TensorAnswer, TensorRequest
from deployments.gateway.listener import HttpServer
from deployments.gateway.request_log import RequestLog
from deployments.metrics import Metrics

ECHO = Signature((TensorSpec("x", "FP32", (ANY, 4)),), (TensorSpec("y", "FP32", (ANY, 4)),), True, 16)


def record_of(version: str, signature: Signature = ECHO, labels: tuple[str, ...] = ()) -> VersionRecord:
    return VersionRecord(
        version, f"/artifacts/{version}", f"digest-{version}", signature, "onnx", "fp32", 1000, 0.0,
        class_labels=labels, deploy=DeploySettings(),
    )  # fmt: skip


class FakeTicket:
    def __init__(self, arm: FakeArm, reply: Reply) -> None:
        self.arm = arm
        self.reply = reply
        self.cancelled = False

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            if self in self.arm.held:
                self.arm.held.remove(self)
                asyncio.get_running_loop().call_soon(self.reply, Cancelled("the client went away"))


class FakeArm:
    """Echoes the first input times its version. With `hold`, only when `release` is called."""

    def __init__(self, record: VersionRecord) -> None:
        self.record = record
        self.ready = True
        self.connected = 1
        self.answered = 0
        self.hold = False
        self.refuse: ServingError | None = None
        self.requests: list[TensorRequest] = []
        self.held: list[Any] = []
        self.answers: dict[int, TensorAnswer] = {}

    @property
    def waiting_rows(self) -> int:
        return sum(request.rows for request in self.requests[-len(self.held) :]) if self.held else 0

    def submit(self, request: TensorRequest, reply: Reply) -> FakeTicket:
        self.requests.append(request)
        ticket = FakeTicket(self, reply)
        ticket.request = request  # type: ignore[attr-defined]
        if self.hold:
            self.held.append(ticket)
        else:
            asyncio.get_running_loop().call_soon(reply, self.outcome(request))
        return ticket

    def outcome(self, request: TensorRequest) -> TensorAnswer | ServingError:
        if self.refuse is not None:
            return self.refuse
        values = np.frombuffer(request.data[0], "<f4") * np.float32(self.record.version)
        return TensorAnswer(
            tuple(request.shapes[0] for _ in self.record.signature.outputs),
            tuple(values.tobytes() for _ in self.record.signature.outputs),
            queue_s=0.001, compute_s=0.002, batch_rows=request.rows,
        )  # fmt: skip

    def release(self, n: int = 0) -> None:
        ticket = self.held.pop(n)
        ticket.reply(self.outcome(ticket.request))


class FakeRoutes:
    """One model `m` with versions 1 and 2 (2 is labelled `canary`), all traffic to 1; `asleep` is not deployed."""

    def __init__(self, signature: Signature = ECHO, labels: tuple[str, ...] = ()) -> None:
        records = {version: record_of(version, signature, labels) for version in ("1", "2")}
        asleep = replace(record_of("1"), deploy=None)
        self.documents = {
            "m": ModelDocument("m", records, TrafficSplit.all_to("1"), {"stable": "1", "canary": "2"}, 3, 7),
            "asleep": ModelDocument("asleep", {"1": asleep}, None, {}, 2, 1),
        }
        self.arms_ = {("m", version): FakeArm(record) for version, record in records.items()}
        self.keys: list[str | None] = []
        self.states: dict[str, str] = {}  # what `statuses` says of a version if it is not READY

    def route(self, target: Target, key: str | None) -> FakeArm:
        self.keys.append(key)
        version = self.document(target.model).resolve(target, key)
        arm = self.arms_.get((target.model, version))
        if arm is None:
            raise ModelNotReady(f"{target.model}:{version} is not deployed")
        return arm

    def arm(self, model: str, version: str) -> FakeArm:
        return self.route(Target(model, version=version), None)

    def arms(self) -> dict[tuple[str, str], FakeArm]:
        return self.arms_

    def models(self) -> list[str]:
        return sorted(self.documents)

    def document(self, model: str) -> ModelDocument:
        if model not in self.documents:
            raise ModelNotFound(f"there is no model {model!r}")
        return self.documents[model]

    def statuses(self, model: str) -> dict[str, VersionStatus]:
        return {
            version: VersionStatus(version, self.states.get(version, "READY"), "", 1, 1, True, record.digest, wants=3)
            for version, record in self.document(model).versions.items()
            if record.deploy
        }


@asynccontextmanager
async def serving(
    app: Callable[..., Any],
    routes: FakeRoutes,
    metrics: Metrics | None = None,
    log: RequestLog | None = None,
    **http: Any,
) -> AsyncIterator[tuple[HttpServer, int]]:
    """The server and its port."""
    sock = socket.create_server(("127.0.0.1", 0))
    settings = Settings(http=HttpSettings(**http), gateway=GatewaySettings())
    server = HttpServer(sock, routes, app, settings, metrics or Metrics("test"), log)
    port = sock.getsockname()[1]
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop()
