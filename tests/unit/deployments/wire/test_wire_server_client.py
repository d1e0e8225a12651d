"""Both ends over real sockets in one process, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.costs import CostCurve
from cluster.documents import DeploySettings, VersionRecord
from cluster.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotReady,
    ServingError,
    TooLarge,
)
from cluster.settings import GatewaySettings
from cluster.tensors import Signature, TensorSpec
from deployments.call import TensorAnswer, TensorRequest
from deployments.costs import METADATA, encode
from deployments.wire import server as wire_server
from deployments.wire.batches import Done, MicroBatch, MicroResult
from deployments.wire.client import VersionClient, micro_batch_rows
from deployments.wire.frames import HEADER, MAGIC, WIRE_VERSION, Hello, Kind, Proof, encode_frame
from deployments.wire.server import WireServer, WireSettings

SECRET = "correct horse"
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),), True, 8)
RECORD = VersionRecord("1", "somewhere", "digest", SIGNATURE, "onnx", "FP32", 1, 0.0, deploy=DeploySettings())


class Doubling:
    """Answers twice the input; while `held`, keeps micro-batches until `release`."""

    def __init__(self, held: bool = False) -> None:
        self.held = held
        self.took_s = 0.0
        self.batches: list[tuple[MicroBatch, Done]] = []
        self.seen: list[MicroBatch] = []
        self.cancelled: list[tuple[int, ...]] = []

    def submit(self, batch: MicroBatch, done: Done) -> None:
        self.seen.append(batch)
        if self.held:
            self.batches.append((batch, done))
        else:
            self.answer(batch, done)

    def answer(self, batch: MicroBatch, done: Done) -> None:
        done(MicroResult((batch.arrays[0] * 2,), compute_s=self.took_s, batch_rows=batch.total_rows))

    def release(self) -> None:
        self.held = False
        batches, self.batches = self.batches, []
        for batch, done in batches:
            self.answer(batch, done)

    def cancel(self, batch: MicroBatch, indices: Any) -> None:
        self.cancelled.append(tuple(indices))

    def queue_rows(self) -> int:
        return sum(batch.total_rows for batch, _ in self.batches)

    def ahead_rows(self, source: int) -> int:
        return self.queue_rows()


class Bench:
    """Servers and clients of one test, closed at its end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pw"))
        self.servers: list[WireServer] = []
        self.clients: list[VersionClient] = []
        self.wanted = 0

    async def server(self, engine: Any, **changes: Any) -> WireServer:
        path = str(self.folder / f"{len(self.servers)}.sock")
        settings = WireSettings(SECRET, unix_path=path, node_id="here", digest="digest")
        server = await WireServer.listen(engine, SIGNATURE, replace(settings, **changes))
        self.servers.append(server)
        return server

    def client(
        self,
        *servers: WireServer,
        secret: str = SECRET,
        node: str = "here",
        record: VersionRecord = RECORD,
        **settings: Any,
    ) -> VersionClient:
        def on_wanted() -> None:
            self.wanted += 1

        client = VersionClient(record, GatewaySettings(**settings), secret, node, on_wanted)
        self.clients.append(client)
        client.update({server.instance: server.addresses() for server in servers})
        return client

    async def close(self) -> None:
        for client in self.clients:
            client.close()
        for server in self.servers:
            await server.drain(0.05)
        shutil.rmtree(self.folder)


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    await bench.close()


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, "it did not come true in time"
        await asyncio.sleep(0.001)


class Asked:
    """A submitted request and its replies."""

    def __init__(self, client: VersionClient, value: float, rows: int = 1, width: int = 3, left_s: float = 10.0):
        self.replies: list[TensorAnswer | ServingError] = []
        self.expected = np.full((rows, width), 2 * value, np.float32)
        data = np.full((rows, width), value, np.float32).tobytes()
        trace = f"00-trace-{value}" if value % 2 else ""
        request = TensorRequest(
            rows, ((rows, width),), (data,), time.monotonic() + left_s, id=f"id-{value}", trace=trace
        )
        self.ticket = client.submit(request, self.replies.append)

    @property
    def right(self) -> bool:
        (answer,) = self.replies
        assert isinstance(answer, TensorAnswer), answer
        assert answer.shapes == (self.expected.shape,)
        return bytes(answer.data[0]) == self.expected.tobytes()

    @property
    def error(self) -> ServingError:
        (answer,) = self.replies
        assert isinstance(answer, ServingError)
        return answer


@pytest.mark.parametrize("node", ["here", "elsewhere"])
async def test_every_request_gets_its_own_rows_over_unix_and_over_tcp(bench: Bench, node: str):
    server = await bench.server(Doubling(), tcp_host="127.0.0.1")
    client = bench.client(server, node=node)
    asked = [Asked(client, value, rows=value % 3 + 1, width=value % 2 + 1) for value in range(200)]
    assert not any(a.replies for a in asked), "no reply from inside submit"
    await until(lambda: all(a.replies for a in asked))
    assert all(a.right for a in asked)
    assert client.connected == 1 and client.ready and server.gateways == 1
    assert (client.waiting_rows, client.in_flight_rows, server.open_calls) == (0, 0, 0)


async def test_tensors_far_larger_than_any_buffer_arrive_whole(bench: Bench):
    server = await bench.server(Doubling())
    client = bench.client(server)
    asked = [Asked(client, value, rows=8, width=200_000) for value in range(4)]
    await until(lambda: all(a.replies for a in asked))
    assert all(a.right for a in asked)


async def test_what_a_busy_replica_cannot_answer_in_time_is_refused_before_it_is_sent(bench: Bench):
    engine = Doubling()
    engine.took_s = 50.0
    slow = replace(RECORD, costs=CostCurve.of({1: 50.0, 8: 50.0}))
    client = bench.client(await bench.server(engine), record=slow)
    first = Asked(client, 0.0, left_s=1000.0)
    await until(lambda: first.replies)
    engine.held = True
    early = [Asked(client, value, left_s=1000.0) for value in range(17)]
    await until(lambda: len(engine.seen) == 3 and client.waiting_rows == 1)
    late, patient = Asked(client, 1.0, left_s=90.0), Asked(client, 2.0, left_s=900.0)
    await until(lambda: late.replies)
    assert isinstance(late.error, DeadlineExceeded) and "expected to take" in late.error.message
    engine.release()
    await until(lambda: patient.replies and all(asked.replies for asked in early))
    assert patient.right and all(asked.right for asked in early)
    assert sum(batch.total_rows for batch in engine.seen) == 19


async def test_a_gateway_reckons_with_what_replicas_measured_and_not_with_what_was_published(bench: Bench):
    engine = Doubling()
    engine.took_s = 50.0
    quick = replace(RECORD, costs=CostCurve.of({1: 0.001, 8: 0.002}))
    client = bench.client(server := await bench.server(engine), record=quick)
    measured = encode(CostCurve.of({1: 50.0, 2: 50.0, 8: 200.0}))
    client.update({server.instance: {**server.addresses(), METADATA: measured}})
    first = Asked(client, 0.0, left_s=1000.0)
    await until(lambda: first.replies)
    engine.held = True
    asked = [Asked(client, value, left_s=1000.0) for value in range(4)]
    late = Asked(client, 1.0, left_s=20.0)
    await until(lambda: late.replies)
    assert isinstance(late.error, DeadlineExceeded)
    engine.release()
    await until(lambda: all(one.replies for one in asked))
    assert max(batch.total_rows for batch in engine.seen) == 2


async def test_concurrent_requests_share_a_frame_and_ids_deadlines_and_priority_arrive(bench: Bench):
    engine = Doubling()
    client = bench.client(await bench.server(engine))
    await until(lambda: client.connected)
    asked = [Asked(client, value, left_s=7.0) for value in range(4)]
    await until(lambda: all(a.replies for a in asked))
    (batch,) = engine.seen
    assert batch.ids == ("id-0", "id-1", "id-2", "id-3")
    assert batch.traces == ("", "00-trace-1", "", "00-trace-3")
    assert batch.rows == (1, 1, 1, 1)
    assert all(6.0 < deadline_s - time.monotonic() <= 7.0 for deadline_s in batch.deadlines_s)


@pytest.mark.parametrize("node", ["here", "elsewhere"])
async def test_a_gateway_without_the_secret_gets_nothing(bench: Bench, node: str):
    engine = Doubling()
    server = await bench.server(engine, tcp_host="127.0.0.1")
    client = bench.client(server, secret="wrong", node=node)
    asked = Asked(client, 1.0, left_s=0.2)
    await until(lambda: asked.replies)
    assert isinstance(asked.error, DeadlineExceeded)
    assert (client.connected, server.gateways, engine.seen) == (0, 0, [])
    with pytest.raises(InvalidRequest, match="non-empty"):
        WireSettings("")


@pytest.mark.parametrize(
    "hostile",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        encode_frame(Kind.INFER, None, 1, 8) + bytes(8),
        encode_frame(Kind.PING),
        encode_frame(Kind.PROOF, Proof(bytes(32))),
        encode_frame(Kind.HELLO, Hello(bytes(32))) + encode_frame(Kind.PROOF, Proof(bytes(32))),
        HEADER.pack(MAGIC, WIRE_VERSION, Kind.HELLO, 1 << 30, 0, 0),
        HEADER.pack(MAGIC, WIRE_VERSION + 1, Kind.HELLO, 0, 0, 0),
    ],
)
@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_a_stranger_is_disconnected_and_nobody_else_notices(bench: Bench, hostile: bytes, over: str):
    server = await bench.server(Doubling(), tcp_host="127.0.0.1")
    client = bench.client(server)
    reader, writer = await strange_connection(server, over)
    writer.write(hostile)
    try:
        await asyncio.wait_for(reader.read(), 5)
        assert reader.at_eof()
    except ConnectionResetError:
        pass
    writer.close()
    asked = Asked(client, 1.0)
    await until(lambda: asked.replies)
    assert asked.right


async def strange_connection(server: WireServer, over: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if over == "unix":
        return await asyncio.open_unix_connection(server.addresses()["unix"])
    host, _, port = server.addresses()["tcp"].rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def test_strangers_that_say_nothing_are_few_and_keep_no_gateway_of_the_same_node_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wire_server, "MAX_STRANGERS", 3)
    monkeypatch.setattr(wire_server, "HANDSHAKE_S", 1.0)
    server = await bench.server(Doubling(), tcp_host="127.0.0.1")
    silent = [await strange_connection(server, "tcp") for _ in range(5)]
    began_s = time.monotonic()
    refused = [asyncio.wait_for(reader.read(), 5) for reader, _ in silent[3:]]
    assert all(
        isinstance(end, ConnectionResetError | bytes) for end in await asyncio.gather(*refused, return_exceptions=True)
    )
    assert time.monotonic() - began_s < 0.3, "the fourth and the fifth were not kept waiting"
    local = bench.client(server)
    asked = Asked(local, 1.0)
    await until(lambda: asked.replies)
    assert asked.right
    remote = bench.client(server, node="elsewhere")
    later = Asked(remote, 2.0)
    await until(lambda: later.replies)  # once the silent ones' time is over
    assert later.right
    for _, writer in silent:
        writer.close()


async def test_work_of_a_replica_that_dies_is_done_by_another(bench: Bench):
    stuck, healthy = Doubling(held=True), Doubling()
    dying = await bench.server(stuck)
    client = bench.client(dying)
    asked = [Asked(client, value) for value in range(5)]
    await until(lambda: stuck.batches)
    other = await bench.server(healthy)
    client.update({s.instance: s.addresses() for s in (dying, other)})
    await dying.drain(0.0)
    await until(lambda: all(a.replies for a in asked))
    assert all(a.right for a in asked)
    assert all(len(batch.rows) == 1 for batch in healthy.seen)
    stuck.release()  # nobody is there any more: nothing may happen
    assert stuck.cancelled


async def test_a_replica_that_comes_back_at_the_same_address_is_used_again_once_membership_says_so(bench: Bench):
    server = await bench.server(Doubling())
    client = bench.client(server)
    await until(lambda: client.connected)
    await server.drain(1.0)
    await until(lambda: not client.connected)
    again = await bench.server(Doubling(), unix_path=server.addresses()["unix"])
    asked = Asked(client, 1.0)
    await asyncio.sleep(0.2)
    assert not asked.replies, "another instance than the one that membership announced"
    client.update({again.instance: again.addresses()})
    await until(lambda: asked.replies)
    assert asked.right


async def test_drain_answers_what_was_sent_and_what_comes_goes_elsewhere(bench: Bench):
    first, second = Doubling(held=True), Doubling()
    leaving = await bench.server(first)
    client = bench.client(leaving)
    early = [Asked(client, value) for value in range(5)]
    await until(lambda: first.batches)
    staying = await bench.server(second)
    client.update({s.instance: s.addresses() for s in (leaving, staying)})
    await until(lambda: client.connected == 2)
    draining = asyncio.create_task(leaving.drain(5.0))
    await until(lambda: client.connected == 1)
    late = [Asked(client, value) for value in range(5)]
    await until(lambda: all(a.replies for a in late))
    assert not draining.done()
    first.release()
    assert await draining is True
    await until(lambda: all(a.replies for a in early))
    assert all(a.right for a in early + late)
    assert not Path(leaving.addresses()["unix"]).exists()


async def test_a_replica_that_left_the_list_is_left_after_its_last_answer(bench: Bench):
    engine = Doubling(held=True)
    server = await bench.server(engine)
    client = bench.client(server)
    asked = Asked(client, 1.0)
    await until(lambda: engine.batches)
    client.update({})
    later = Asked(client, 2.0, left_s=0.3)
    await until(lambda: later.replies)
    assert isinstance(later.error, DeadlineExceeded)
    assert bench.wanted >= 1
    assert server.gateways == 1
    engine.release()
    await until(lambda: asked.replies and server.gateways == 0)
    assert asked.right


async def test_a_cancelled_request_is_withdrawn_from_the_engine(bench: Bench):
    engine = Doubling(held=True)
    client = bench.client(await bench.server(engine))
    await until(lambda: client.connected)
    first, second = Asked(client, 1.0), Asked(client, 2.0)
    await until(lambda: engine.batches)
    second.ticket.cancel()
    assert not second.replies
    await until(lambda: second.replies and engine.cancelled)
    assert isinstance(second.error, Cancelled)
    assert engine.cancelled == [(1,)]
    engine.release()
    await until(lambda: first.replies)
    assert first.right and len(second.replies) == 1


async def test_an_engine_that_raises_fails_its_micro_batch_and_not_the_connection(bench: Bench):
    class Raising(Doubling):
        def submit(self, batch: MicroBatch, done: Done) -> None:
            if batch.arrays[0][0, 0] == 13:
                raise RuntimeError("secret detail")
            super().submit(batch, done)

    client = bench.client(await bench.server(Raising()))
    bad = Asked(client, 13.0)
    await until(lambda: bad.replies)
    assert isinstance(bad.error, EngineFailed) and "secret" not in bad.error.message
    good = Asked(client, 1.0)
    await until(lambda: good.replies)
    assert good.right


async def test_a_request_that_does_not_fit_is_refused_alone_and_later(bench: Bench):
    client = bench.client(await bench.server(Doubling()))
    bad = [Asked(client, 1.0, rows=9)]
    request = TensorRequest(1, ((1, 3),), (b"short",), time.monotonic() + 5)
    replies: list[TensorAnswer | ServingError] = []
    client.submit(request, replies.append)
    client.submit(replace(request, priority=7, data=(bytes(12),)), replies.append)
    good = Asked(client, 1.0)
    assert not bad[0].replies and not replies
    await until(lambda: good.replies)
    assert good.right
    assert isinstance(bad[0].error, InvalidRequest) and all(isinstance(r, InvalidRequest) for r in replies)
    assert len(replies) == 2


async def test_a_request_larger_than_all_that_may_wait_is_too_large(bench: Bench):
    client = bench.client(await bench.server(Doubling()), max_waiting_bytes=1000)
    asked = Asked(client, 1.0, width=300)
    await until(lambda: asked.replies)
    assert isinstance(asked.error, TooLarge)


async def test_a_reply_that_raises_does_not_cost_the_others_theirs(bench: Bench):
    client = bench.client(await bench.server(Doubling()))
    await until(lambda: client.connected)

    def broken(outcome: TensorAnswer | ServingError) -> None:
        raise RuntimeError("a bug in the caller")

    client.submit(TensorRequest(1, ((1, 3),), (bytes(12),), time.monotonic() + 5), broken)
    asked = Asked(client, 1.0)
    await until(lambda: asked.replies)
    assert asked.right


async def test_close_refuses_what_waits_and_what_comes_but_answers_what_is_in_flight(bench: Bench):
    engine = Doubling(held=True)
    client = bench.client(await bench.server(engine), in_flight_per_replica=1)
    await until(lambda: client.connected)
    flying = Asked(client, 1.0)
    await until(lambda: engine.batches)
    waiting = Asked(client, 2.0)
    client.close()
    coming = Asked(client, 3.0)
    await until(lambda: waiting.replies and coming.replies)
    assert isinstance(waiting.error, ModelNotReady) and isinstance(coming.error, ModelNotReady)
    engine.release()
    await until(lambda: flying.replies)
    assert flying.right


async def test_giving_up_answers_what_waits_and_what_comes_later_waits_for_a_replica(bench: Bench):
    client = bench.client()
    waiting = Asked(client, 1.0)
    await until(lambda: bench.wanted)
    client.give_up(ModelNotReady("m:1 cannot be started: no memory"))
    await until(lambda: waiting.replies)
    assert isinstance(waiting.error, ModelNotReady) and waiting.error.message == "m:1 cannot be started: no memory"
    later = Asked(client, 2.0)
    server = await bench.server(Doubling())
    client.update({server.instance: server.addresses()})
    await until(lambda: later.replies)
    assert later.right


async def test_the_replica_learns_the_gateways_backlog_with_each_micro_batch(bench: Bench):
    engine = Doubling(held=True)
    server = await bench.server(engine)
    client = bench.client(server)
    await until(lambda: client.connected)
    asked = [Asked(client, value) for value in range(8 * 2 + 5)]
    await until(lambda: len(engine.batches) == 2)
    assert client.waiting_rows == 5
    assert server.backlog_rows() == 5
    engine.release()
    await until(lambda: all(a.replies for a in asked))
    assert server.backlog_rows() == 0


async def test_a_taken_address_fails_the_start_and_a_dead_ones_file_does_not(bench: Bench):
    server = await bench.server(Doubling())
    path = server.addresses()["unix"]
    assert Path(path).stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="somebody listens"):
        await WireServer.listen(Doubling(), SIGNATURE, WireSettings(SECRET, unix_path=path))
    client = bench.client(server)
    await until(lambda: client.connected)
    dead = bench.folder / "dead.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_behind:
        left_behind.bind(str(dead))
    await bench.server(Doubling(), unix_path=str(dead))


async def test_a_gateway_dialling_before_the_replica_listens_connects_when_it_does(bench: Bench):
    path = str(bench.folder / "later.sock")
    client = bench.client()
    client.update({"r": {"unix": path, "node": "here"}})
    asked = Asked(client, 1.0)
    await bench.server(Doubling(), unix_path=path)
    await until(lambda: asked.replies)
    assert asked.right


def test_a_micro_batch_has_the_configured_rows_else_what_pays():
    assert micro_batch_rows(RECORD) == 8
    assert micro_batch_rows(replace(RECORD, deploy=DeploySettings(max_batch_rows=3))) == 3
    assert micro_batch_rows(replace(RECORD, deploy=DeploySettings(max_batch_rows=300))) == 8


async def test_a_micro_batch_is_no_larger_than_the_queue_it_comes_from():
    client = VersionClient(RECORD, GatewaySettings(max_waiting_rows=4), SECRET, "here", lambda: None)
    assert client._pool.settings.batch_rows == 4
    client.close()
