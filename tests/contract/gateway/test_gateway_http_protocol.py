from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import uvicorn
from gateway_client import ROW, Client, app, get, infer, play, scenario, until
from gateway_fakes import FakeRoutes, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DeadlineExceeded, InvalidRequest, Overloaded
from deployments.gateway.exchanges import MAX_ASGI_BODY_BYTES
from deployments.gateway.phases import DEAF
from deployments.metrics import Metrics


def test_the_protocol_was_written_for_this_version_of_uvicorn() -> None:
    assert uvicorn.__version__ == "0.54.0", "read the module's list of internals against the new version"


@scenario()
async def test_an_answer_says_which_version_answered(client: Client, routes: FakeRoutes) -> None:
    client.send(infer())
    answer = await client.answer()
    assert answer.status == 200 and answer.values == [0, 1, 2, 3]
    assert answer.headers["x-prism-model-version"] == "1"
    client.send(infer(path=b"/v2/models/m/versions/2/infer"), infer(path=b"/v2/models/m/labels/canary/infer"))
    for _ in range(2):
        answer = await client.answer()
        assert answer.values == [0, 2, 4, 6] and answer.headers["x-prism-model-version"] == "2"


@scenario()
async def test_the_sticky_key_reaches_the_split(client: Client, routes: FakeRoutes) -> None:
    client.send(infer(ROW, b"/v2/models/m/infer", b"X-Prism-Key: user-7"), infer())
    await client.answer(), await client.answer()
    assert routes.keys == ["user-7", None]


@scenario()
async def test_pipelined_requests_are_answered_in_order_whoever_answers(client: Client, routes: FakeRoutes) -> None:
    client.send(
        infer([1] * 4),
        get(b"/slow"),
        infer([2] * 4),
        get(b"/b"),
        get(b"/bad"),
        infer([3] * 4),
        infer(path=b"/v2/models/zz/infer"),
    )
    assert (await client.answer()).values == [1] * 4
    assert (await client.answer()).body == b"GET /slow "
    assert (await client.answer()).values == [2] * 4
    assert (await client.answer()).body == b"GET /b "
    assert (await client.answer()).status == 500
    assert await client.closed()  # uvicorn closes after an application failed


@scenario()
async def test_answers_that_come_out_of_order_leave_in_order(client: Client, routes: FakeRoutes) -> None:
    arm = routes.arms_["m", "1"]
    arm.hold = True
    client.send(*(infer([n] * 4) for n in range(5)))
    await until(lambda: len(arm.held) == 5)
    for n in (4, 2, 0, 1, 0):
        arm.release(n)
    assert [(await client.answer()).values[0] for _ in range(5)] == [0, 1, 2, 3, 4]


@given(st.lists(st.sampled_from(["infer", "get", "slow", "unknown", "json"]), min_size=1, max_size=8), st.data())
@settings(max_examples=12, deadline=None)
def test_every_request_is_answered_once_in_order_however_the_bytes_arrive(
    kinds: list[str], data: st.DataObject
) -> None:
    async def play_it(client: Client, routes: FakeRoutes) -> None:
        made = {
            "infer": infer(),
            "get": get(b"/a"),
            "slow": get(b"/slow"),
            "unknown": infer(path=b"/v2/models/zz/infer"),
            "json": b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n",
        }
        raw = b"".join(made[kind] for kind in kinds)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
        for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            client.send(raw[a:b])
            await client.writer.drain()
            await asyncio.sleep(0)
        expected = {"infer": 200, "get": 200, "slow": 200, "unknown": 404, "json": 400}
        for kind in kinds:
            assert (await client.answer()).status == expected[kind]

    asyncio.run(play(play_it))


@scenario()
async def test_a_request_may_arrive_byte_by_byte(client: Client, routes: FakeRoutes) -> None:
    for byte in infer():
        client.send(bytes([byte]))
        await client.writer.drain()
        await asyncio.sleep(0)
    assert (await client.answer()).values == [0, 1, 2, 3]


@scenario()
async def test_a_chunked_body_is_one_body_and_its_trailers_are_no_headers(client: Client, routes: FakeRoutes) -> None:
    head = (
        b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\nInference-Header-Content-Length: 0\r\n\r\n"
    )
    raw = ROW.tobytes()
    client.send(head, b"a\r\n", raw[:10], b"\r\n6\r\n", raw[10:], b"\r\n0\r\nX-Prism-Key: late\r\n\r\n")
    assert (await client.answer()).values == [0, 1, 2, 3]
    assert routes.keys == [None]


@scenario()
async def test_a_body_in_crumbs_is_whole_and_kept_as_one_piece(client: Client, routes: FakeRoutes) -> None:
    head = (
        b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\nInference-Header-Content-Length: 0\r\n\r\n"
    )
    values = np.arange(64, dtype="<f4").reshape(16, 4)
    client.send(head, *(b"1\r\n%c\r\n" % byte for byte in values.tobytes()))
    (connection,) = client.server._server.protocols()  # type: ignore[attr-defined]
    await until(lambda: connection._receiving is not None and connection._receiving.held_bytes == 256)
    assert len(connection._receiving.chunks) <= 64 and connection._receiving.whole is not None
    client.send(b"0\r\n\r\n")
    assert (await client.answer()).values == values.reshape(-1).tolist()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        (b"gzip", gzip.compress),
        (b"deflate", zlib.compress),
        (b"deflate", lambda raw: zlib.compress(raw, wbits=-15)),
        (b"identity", bytes),
    ],
)
async def test_compressed_bodies_are_unpacked(encoding: bytes, packed: Callable[[bytes], bytes]) -> None:
    async def test(client: Client, routes: FakeRoutes) -> None:
        body = packed(ROW.tobytes())
        client.send(
            b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n"
            b"Inference-Header-Content-Length: 0\r\n\r\n%b" % (encoding, len(body), body),
            get(b"/after"),
        )
        assert (await client.answer()).values == [0, 1, 2, 3]
        assert (await client.answer()).body == b"GET /after "

    await play(test)


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        (b"gzip", gzip.compress(bytes(1 << 20)), 413),
        (b"gzip", gzip.compress(bytes(16))[:-9], 400),
        (b"gzip", b"nonsense", 400),
        (b"deflate", zlib.compress(bytes(16)) + b"more", 400),
        (b"br", b"?", 415),
    ],
)
async def test_bodies_that_cannot_be_unpacked_are_refused(encoding: bytes, body: bytes, status: int) -> None:
    async def test(client: Client, routes: FakeRoutes) -> None:
        client.send(
            b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n"
            b"Inference-Header-Content-Length: 0\r\n\r\n%b" % (encoding, len(body), body)
        )
        assert (await client.answer()).status == status

    await play(test, max_body_bytes=65536)


@scenario()
async def test_a_client_that_expects_it_is_told_to_continue(client: Client, routes: FakeRoutes) -> None:
    head, _, body = infer(ROW, b"/v2/models/m/infer", b"Expect: 100-continue").partition(b"\r\n\r\n")
    client.send(head, b"\r\n\r\n")
    assert (await client.answer()).status == 100
    client.send(body)
    assert (await client.answer()).status == 200


@scenario(max_body_bytes=1024)
async def test_a_client_is_not_told_to_continue_with_a_body_that_is_too_large(client: Client, routes: Any) -> None:
    client.send(b"POST /v2/models/m/infer HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9999\r\n\r\n")
    assert (await client.answer()).status == 413
    assert await client.closed()


@scenario()
async def test_other_expectations_fail(client: Client, routes: FakeRoutes) -> None:
    client.send(get(b"/", b"Expect: miracles"))
    assert (await client.answer()).status == 417


@scenario()
async def test_connection_close_and_http_1_0_end_the_connection(client: Client, routes: FakeRoutes) -> None:
    client.send(infer(ROW, b"/v2/models/m/infer", b"Connection: close"), infer())
    answer = await client.answer()
    assert answer.status == 200 and answer.headers["connection"] == "close"
    assert await client.closed()
    assert len(routes.arms_["m", "1"].requests) == 1
    old = Client(*await asyncio.open_connection("127.0.0.1", client.port))  # type: ignore[attr-defined]
    old.send(infer().replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (await old.answer()).headers["connection"] == "close"
    assert await old.closed()


@scenario(max_header_bytes=2048)
async def test_headers_beyond_the_limit_are_refused(client: Client, routes: FakeRoutes) -> None:
    client.send(get(b"/", b"A: " + b"a" * 3000))
    assert (await client.answer()).status == 431
    assert await client.closed()


@scenario(max_header_bytes=2048)
async def test_headers_without_end_are_refused(client: Client, routes: FakeRoutes) -> None:
    client.send(b"GET / HTTP/1.1\r\nA: ")
    for _ in range(5):
        client.send(b"a" * 600)
        await client.writer.drain()
        await asyncio.sleep(0.002)
    assert (await client.answer()).status == 431


@scenario()
async def test_too_many_headers_are_refused(client: Client, routes: FakeRoutes) -> None:
    client.send(get(b"/", *(b"A%d: 1" % n for n in range(300))))
    assert (await client.answer()).status == 431


@scenario(max_body_bytes=1024)
async def test_a_client_that_sends_too_much_reads_why(client: Client, routes: FakeRoutes) -> None:
    client.send(infer(np.zeros(4 << 18)))
    answer = await client.answer()
    assert answer.status == 413 and "1024 bytes" in answer.error and answer.headers["connection"] == "close"
    assert await client.closed()


@scenario(max_body_bytes=1024)
async def test_a_chunked_body_is_counted_as_it_comes(client: Client, routes: FakeRoutes) -> None:
    client.send(b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.send(*[b"200\r\n" + bytes(512) + b"\r\n"] * 3)
    assert (await client.answer()).status == 413


@scenario()
async def test_other_bodies_have_a_smaller_limit(client: Client, routes: FakeRoutes) -> None:
    client.send(b"POST /api HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_ASGI_BODY_BYTES + 1))
    assert (await client.answer()).status == 413


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"CONNECT a:1 HTTP/1.1\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST /v2/models/..%2F..%2Fetc/infer HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        (b"POST /v2/models/%ff/infer HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        (b"POST /v2/models/m/versions/zero/infer HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
    ],
)
async def test_what_is_not_a_good_request_is_refused_and_the_server_lives(raw: bytes, status: int) -> None:
    async def test(client: Client, routes: FakeRoutes) -> None:
        client.send(infer(), raw)
        assert (await client.answer()).status == 200
        answer = await client.answer()
        assert answer.status == status and answer.error
        again = Client(*await asyncio.open_connection("127.0.0.1", client.port))  # type: ignore[attr-defined]
        again.send(infer())
        assert (await again.answer()).status == 200

    await play(test)


@given(st.lists(st.binary(max_size=300), min_size=10, max_size=20))
@settings(max_examples=4, deadline=None)
def test_noise_is_answered_or_the_connection_closed(noises: list[bytes]) -> None:
    async def play_it(client: Client, routes: FakeRoutes) -> None:
        for noise in noises:
            each = Client(*await asyncio.open_connection("127.0.0.1", client.port))  # type: ignore[attr-defined]
            each.send(noise)
            each.writer.write_eof()
            said = await asyncio.wait_for(each.reader.read(), 5)
            assert not said or said.startswith(b"HTTP/1.1 ")

    asyncio.run(play(play_it))


@scenario()
async def test_an_offer_of_http_2_is_declined_and_the_request_answered(client: Client, routes: FakeRoutes) -> None:
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    client.send(infer(ROW, b"/v2/models/m/infer", *offer), infer())
    assert (await client.answer()).values == [0, 1, 2, 3]
    assert (await client.answer()).status == 200


@scenario(header_timeout_s=0.05)
async def test_headers_that_dawdle_time_out(client: Client, routes: FakeRoutes) -> None:
    client.send(b"GET / HTTP/1.1\r\nA: ")
    assert (await client.answer()).status == 408
    assert await client.closed()


@scenario(body_timeout_s=0.05)
async def test_a_body_that_dawdles_times_out_and_its_bytes_are_given_back(client: Client, routes: FakeRoutes) -> None:
    client.send(infer()[:-3])
    assert (await client.answer()).status == 408
    assert await client.closed()
    assert client.server._inference.buffered_bytes == 0  # type: ignore[attr-defined]


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    fields = (b"Host: x", b"Content-Length: %d" % len(body), *headers)
    return b"POST %b HTTP/1.1\r\n%b\r\n\r\n%b" % (path, b"\r\n".join(fields), body)


@scenario()
async def test_bodies_count_until_they_are_handed_on(client: Client, routes: FakeRoutes) -> None:
    inference = client.server._inference  # type: ignore[attr-defined]
    arm = routes.arms_["m", "1"]
    arm.hold = True
    text, packed = b"a" * 1000, gzip.compress(b"b" * 3000)
    client.send(infer(), post(b"/x", text), post(b"/y", packed, b"Content-Encoding: gzip"), post(b"/z", text)[:-1])
    await until(lambda: inference.buffered_bytes == 1000 + 3000 + 999)
    arm.release()
    assert (await client.answer()).status == 200
    for body in (text, b"b" * 3000):
        assert (await client.answer()).body.endswith(body)
    await until(lambda: inference.buffered_bytes == 999)
    client.send(text[-1:], post(b"/v2/models/m/infer", gzip.compress(infer()[-16:]), b"Content-Encoding: gzip"))
    await client.answer()
    await until(lambda: inference.buffered_bytes == 0)


@scenario()
async def test_a_client_that_leaves_gives_its_bytes_back(client: Client, routes: FakeRoutes) -> None:
    inference = client.server._inference  # type: ignore[attr-defined]
    routes.arms_["m", "1"].hold = True
    packed = gzip.compress(b"b" * 300_000)
    client.send(
        infer(), post(b"/x", b"a" * 1000), post(b"/y", packed, b"Content-Encoding: gzip"), post(b"/z", b"c")[:-1]
    )
    await until(lambda: inference.buffered_bytes >= 1000)
    client.writer.close()
    await until(lambda: inference.buffered_bytes == 0)
    await asyncio.sleep(0.01)
    assert inference.buffered_bytes == 0


@pytest.mark.parametrize("packed", [False, True])
async def test_bodies_that_wait_their_turn_leave_no_room_for_more(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.gateway.inference.MAX_BUFFERED_BYTES", 2500)

    async def play_it(client: Client, routes: FakeRoutes) -> None:
        arm = routes.arms_["m", "1"]
        arm.hold = True
        text = b"a" * 1000
        last = post(b"/z", gzip.compress(text), b"Content-Encoding: gzip") if packed else post(b"/z", text)
        client.send(infer(), post(b"/x", text), post(b"/y", text))
        await until(lambda: client.server._inference.buffered_bytes == 2000)  # type: ignore[attr-defined]
        client.send(last)
        (connection,) = client.server._server.protocols()  # type: ignore[attr-defined]
        await until(lambda: len(connection._queue) == 4 and connection._queue[-1].response is not None)
        arm.release()
        assert [(await client.answer()).status for _ in range(4)] == [200, 200, 200, 429]

    await play(play_it)


@scenario(keep_alive_s=0.05, header_timeout_s=0.05)
async def test_an_idle_connection_is_closed_and_a_waiting_one_is_not(client: Client, routes: FakeRoutes) -> None:
    arm = routes.arms_["m", "1"]
    arm.hold = True
    client.send(infer())
    await asyncio.sleep(0.4)
    arm.release()
    assert (await client.answer()).status == 200
    assert await client.closed()


@scenario(write_timeout_s=0.1)
async def test_a_client_that_does_not_read_is_cut_off(client: Client, routes: FakeRoutes) -> None:
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    arm = routes.arms_["m", "1"]
    path = b"/v2/models/m/infer"
    rows = np.zeros((16, 4))
    flood = infer(rows, path) * 200
    sent = 0
    try:
        async with asyncio.timeout(10):
            while True:
                client.send(flood)
                sent += 200
                await client.writer.drain()
                await asyncio.sleep(0)
    except (ConnectionError, TimeoutError) as error:
        assert isinstance(error, ConnectionError)
    assert len(arm.requests) <= sent


@scenario(max_connections=2)
async def test_connections_beyond_the_limit_are_told_to_come_back(client: Client, routes: FakeRoutes) -> None:
    port = client.port  # type: ignore[attr-defined]
    client.send(get(b"/"))
    await client.answer()
    second = Client(*await asyncio.open_connection("127.0.0.1", port))
    second.send(get(b"/"))
    await second.answer()
    third = Client(*await asyncio.open_connection("127.0.0.1", port))
    answer = await third.answer()
    assert answer.status == 503 and answer.headers["retry-after"] == "1"
    assert await third.closed()


@scenario()
async def test_a_client_that_leaves_takes_its_requests_along(client: Client, routes: FakeRoutes) -> None:
    arm = routes.arms_["m", "1"]
    arm.hold = True
    client.send(infer() * 3)
    await until(lambda: len(arm.held) == 3)
    tickets = list(arm.held)
    client.writer.close()
    await until(lambda: all(ticket.cancelled for ticket in tickets))


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (Overloaded("full"), 429, "1"),
        (DeadlineExceeded("late"), 504, None),
        (InvalidRequest("no"), 400, None),
    ],
)
async def test_refusals_carry_their_status_and_keep_the_connection(error: Any, status: int, retry: str | None) -> None:
    metrics = Metrics()
    routes = FakeRoutes()
    routes.arms_["m", "1"].refuse = error
    async with serving(app, routes, metrics) as (_, port):
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        client.send(infer(), infer())
        for _ in range(2):
            answer = await client.answer()
            assert (answer.status, answer.headers.get("retry-after")) == (status, retry)
            assert answer.error == error.message and answer.headers["x-prism-model-version"] == "1"
        assert metrics.cell("m", "1", "stable").status == {status: 2}
        client.writer.close()


@scenario()
async def test_deadlines_come_from_the_request(client: Client, routes: FakeRoutes) -> None:
    client.send(infer(), infer(ROW, b"/v2/models/m/infer", b"X-Prism-Timeout-Ms: 250"))
    await client.answer(), await client.answer()
    default, asked = (request.deadline_s for request in routes.arms_["m", "1"].requests)
    assert 29 < default - asked < 30
    client.send(infer(ROW, b"/v2/models/m/infer", b"X-Prism-Timeout-Ms: soon"))
    assert "X-Prism-Timeout-Ms" in (await client.answer()).error


@scenario()
async def test_draining_answers_what_was_accepted_and_closes_what_is_idle(client: Client, routes: FakeRoutes) -> None:
    server, port = client.server, client.port  # type: ignore[attr-defined]
    arm = routes.arms_["m", "1"]
    arm.hold = True
    client.send(infer(), get(b"/slow"))
    await until(lambda: len(arm.held) == 1)
    idle = Client(*await asyncio.open_connection("127.0.0.1", port))
    partial = Client(*await asyncio.open_connection("127.0.0.1", port))
    request = infer()
    partial.send(request[:-4])
    await asyncio.sleep(0.02)
    draining = asyncio.create_task(server.drain(5.0))
    assert await idle.closed()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)
    partial.send(request[-4:])
    await until(lambda: len(arm.held) == 2)
    arm.release(0), arm.release(0)
    assert (await client.answer()).status == 200
    for each in (client, partial):
        answer = await each.answer()
        assert answer.status == 200 and answer.headers["connection"] == "close"
    assert await draining


@scenario()
async def test_draining_answers_every_pipelined_request_and_closes_with_the_last(
    client: Client, routes: FakeRoutes
) -> None:
    server, port = client.server, client.port  # type: ignore[attr-defined]
    arm = routes.arms_["m", "1"]
    arm.hold = True
    mixed = Client(*await asyncio.open_connection("127.0.0.1", port))
    client.send(*(infer([n] * 4) for n in range(3)))
    await until(lambda: len(arm.held) == 3)
    mixed.send(infer(), get(b"/slow"), infer(), get(b"/last"))
    await until(lambda: len(arm.held) == 5)
    draining = asyncio.create_task(server.drain(5.0))
    await asyncio.sleep(0)
    arm.release(2)  # the last one's answer is there first
    await until(lambda: all(connection._phase >= DEAF for connection in server._server.protocols()))
    client.send(infer())
    while arm.held:
        arm.release()
    for each, count in ((client, 3), (mixed, 4)):
        answers = [await each.answer() for _ in range(count)]
        assert [answer.status for answer in answers] == [200] * count
        assert ["connection" in answer.headers for answer in answers] == [False] * (count - 1) + [True]
        assert await each.closed()
        each.writer.close()
    assert await draining and len(arm.requests) == 5


@scenario()
async def test_a_request_that_is_arriving_when_draining_begins_is_the_last(client: Client, routes: FakeRoutes) -> None:
    arm = routes.arms_["m", "1"]
    arm.hold = True
    client.send(infer(), infer()[:-4])
    await until(lambda: len(arm.held) == 1)
    draining = asyncio.create_task(client.server.drain(5.0))  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    arm.release()
    assert "connection" not in (await client.answer()).headers
    client.send(infer()[-4:], infer())
    await until(lambda: len(arm.held) == 1)
    arm.release()
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.closed() and len(arm.requests) == 2
    client.writer.close()
    assert await draining


@scenario()
async def test_draining_gives_up_in_time(client: Client, routes: FakeRoutes) -> None:
    routes.arms_["m", "1"].hold = True
    client.send(infer())
    await until(lambda: len(routes.arms_["m", "1"].held) == 1)
    assert not await client.server.drain(0.1)  # type: ignore[attr-defined]
    await client.server.stop()  # type: ignore[attr-defined]
    assert await client.closed()


@scenario()
async def test_many_requests_on_many_connections_are_each_answered_with_their_own(client: Client, routes: Any) -> None:
    port = client.port  # type: ignore[attr-defined]

    async def one(n: int) -> None:
        mine = Client(*await asyncio.open_connection("127.0.0.1", port))
        for i in range(20):
            mine.send(infer([n, i, n, i]))
            assert (await mine.answer()).values == [n, i, n, i]
        mine.writer.close()

    await asyncio.gather(*(one(n) for n in range(20)))


@scenario()
async def test_metrics_count_what_was_answered(client: Client, routes: FakeRoutes) -> None:
    metrics = client.server._inference.metrics  # type: ignore[attr-defined]
    client.send(infer(np.zeros((3, 4))), infer(path=b"/v2/models/zz/infer"), infer([1]))
    assert [(await client.answer()).status for _ in range(3)] == [200, 404, 400]
    cell = metrics.cell("m", "1", "stable")
    assert cell.status == {200: 1, 400: 1} and cell.rows == 3 and cell.queue.total == 0.001
    assert metrics.unknown.status == {404: 1}


@scenario()
async def test_a_fault_of_ours_is_no_fault_of_the_clients(client: Client, routes: FakeRoutes) -> None:
    def fault(*_: Any) -> Any:
        raise RuntimeError("secret")

    routes.route = fault  # type: ignore[method-assign]
    client.send(infer(), get(b"/after"))
    answer = await client.answer()
    assert answer.status == 500 and answer.error == "internal error"
    assert (await client.answer()).status == 200
    (connection,) = client.server._server.protocols()  # type: ignore[attr-defined]
    connection._flush = fault
    client.send(get(b"/"))
    assert await client.closed()
