from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from gateway_client import Client, get, infer, play, scenario, until
from gateway_fakes import FakeRoutes
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.gateway import heads
from deployments.gateway.heads import KnownHeads


def known_of(client: Client) -> KnownHeads:
    return client.server._inference.heads  # type: ignore[attr-defined,no-any-return]


def connection_of(client: Client) -> Any:
    return client.server._server.protocols()[0]  # type: ignore[attr-defined]


async def met(client: Client, *requests: bytes) -> None:
    """Send each request until its head is known."""
    for request in requests:
        for _ in range(2):
            client.send(request)
            assert (await client.answer()).status == 200


class NoParser:
    def feed_data(self, data: bytes) -> None:
        raise AssertionError(f"the parser was given {data!r}")


@scenario()
async def test_a_head_that_came_twice_goes_past_the_parser(client: Client, routes: FakeRoutes) -> None:
    await met(client, infer())
    connection_of(client).parser = NoParser()
    client.send(infer([5, 6, 7, 8]))
    assert (await client.answer()).values == [5, 6, 7, 8]
    assert connection_of(client)._requests == 3


@scenario()
async def test_a_head_that_came_once_is_not_kept(client: Client, routes: FakeRoutes) -> None:
    client.send(infer())
    await client.answer()
    assert known_of(client).by_bytes == {}


@scenario()
async def test_a_known_head_keeps_its_fields_and_its_target(client: Client, routes: FakeRoutes) -> None:
    asked = infer([1, 2, 3, 4], b"/v2/models/m/versions/2/infer", b"X-Prism-Key: k", b"X-Prism-Timeout-Ms: 7000")
    await met(client, asked, infer())
    client.send(asked)
    answer = await client.answer()
    assert answer.values == [2, 4, 6, 8] and answer.headers["x-prism-model-version"] == "2"
    assert routes.keys[-1] == "k"
    request = routes.arms_["m", "2"].requests[-1]
    assert 6 < request.deadline_s - asyncio.get_running_loop().time() <= 7


@given(st.lists(st.sampled_from(["infer", "two", "get", "unknown"]), min_size=1, max_size=8), st.data())
@settings(max_examples=20, deadline=None)
def test_known_heads_or_not_every_request_is_answered_in_order_however_the_bytes_arrive(
    kinds: list[str], data: st.DataObject
) -> None:
    made = {
        "infer": (infer([1, 1, 1, 1]), 200),
        "two": (infer([[2, 2, 2, 2]] * 2), 200),
        "get": (get(b"/a"), 200),
        "unknown": (infer([9, 9, 9, 9], b"/v2/models/zz/infer"), 404),
    }

    async def play_it(client: Client, routes: FakeRoutes) -> None:
        await met(client, made["infer"][0], made["two"][0])
        raw = b"".join(made[kind][0] for kind in kinds)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
        for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            client.send(raw[a:b])
            await client.writer.drain()
            await asyncio.sleep(0.001)
        for kind in kinds:
            answer = await client.answer()
            assert answer.status == made[kind][1]
            if kind in ("infer", "two"):
                assert answer.values == [1.0] * 4 if kind == "infer" else [2.0] * 8

    asyncio.run(play(play_it))


@scenario(max_body_bytes=4 << 20)
async def test_a_large_body_behind_a_known_head_arrives_whole(client: Client, routes: FakeRoutes) -> None:
    values = np.arange(16 * 4, dtype="<f4").reshape(16, 4)
    request = infer(values)
    await met(client, request)
    for at in range(0, len(request), 50):
        client.send(request[at : at + 50])
        await client.writer.drain()
        await asyncio.sleep(0)
    assert (await client.answer()).values == values.ravel().tolist()


@pytest.mark.parametrize(
    "request_bytes",
    [
        infer([1] * 4, b"/v2/models/m/infer", b"Connection: close"),
        infer([1] * 4, b"/v2/models/m/infer", b"Expect: 100-continue"),
        infer([1] * 4, b"/v2/models/m/infer", b"Content-Encoding: identity"),
        get(b"/a"),
        infer([1] * 4, b"/v2/models/m/infer", b"X-Long: " + b"x" * heads.MAX_HEAD_BYTES),
        b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\nInference-Header-Content-Length: 0\r\n\r\n"
        b"10\r\n" + np.ones(4, "<f4").tobytes() + b"\r\n0\r\n\r\n",
    ],
)
async def test_heads_that_mean_more_than_a_body_are_parsed_every_time(request_bytes: bytes) -> None:
    for _ in range(2):

        async def test(client: Client, routes: FakeRoutes) -> None:
            for _ in range(3):
                client.send(request_bytes)
                answer = await client.answer()
                if answer.status == 100:
                    answer = await client.answer()
                assert answer.status == 200
                if answer.headers.get("connection") == "close":
                    break
            assert known_of(client).by_bytes == {}

        await play(test)


@scenario()
async def test_an_end_of_a_head_inside_a_body_is_not_taken_for_one(client: Client, routes: FakeRoutes) -> None:
    head, _, _ = infer().partition(b"\r\n\r\n")
    for filler in (b"\r\n\r\n", b"abcd"):
        for _ in range(3):
            body = filler * 4
            client.send(head + b"\r\n\r\n" + body)
            assert (await client.answer()).values == np.frombuffer(body, "<f4").tolist()
    assert len(known_of(client).by_bytes) == 1


@scenario()
async def test_lines_that_end_otherwise_are_never_remembered(client: Client, routes: FakeRoutes) -> None:
    body = b"\r\n\r\n" * 4
    client.send(infer().partition(b"\r\n\r\n")[0].replace(b"\r\n", b"\n") + b"\n\n" + body)
    answer = await client.answer()
    assert answer.status in (200, 400)
    assert known_of(client).by_bytes == {} and not known_of(client)._met


def test_only_so_many_heads_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_KEPT_HEADS", 3)
    monkeypatch.setattr(heads, "_MET_ONCE", 8)

    async def test(client: Client, routes: FakeRoutes) -> None:
        asked = [infer([1] * 4, b"/v2/models/m/infer", b"X-N: %d" % n) for n in range(5)]
        await met(client, *asked)
        known = known_of(client)
        assert list(known.by_bytes) == [request.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" for request in asked[2:]]
        for n in range(100):
            client.send(infer([1] * 4, b"/v2/models/m/infer", b"X-Once: %d" % n))
            await client.answer()
        assert len(known.by_bytes) == 3 and len(known._met) <= 8

    asyncio.run(play(test))


@scenario(body_timeout_s=0.2)
async def test_a_body_behind_a_known_head_may_not_dawdle(client: Client, routes: FakeRoutes) -> None:
    await met(client, infer())
    client.send(infer()[:-3])
    answer = await client.answer()
    assert answer.status == 408 and answer.headers["connection"] == "close"
    assert await client.closed()


def test_a_body_behind_a_known_head_needs_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(client: Client, routes: FakeRoutes) -> None:
        request = infer([[1] * 4] * 16)
        await met(client, request)
        monkeypatch.setattr("deployments.gateway.inference.MAX_BUFFERED_BYTES", 100)
        client.send(request[:-100])
        answer = await client.answer()
        assert answer.status == 429 and "memory" in answer.error
        client.send(request[-100:], infer())
        assert await client.closed()
        assert client.server._inference.buffered_bytes == 0  # type: ignore[attr-defined]

    asyncio.run(play(test))


@scenario()
async def test_while_draining_a_known_head_is_the_connections_last(client: Client, routes: FakeRoutes) -> None:
    await met(client, infer())
    task = asyncio.create_task(client.server.drain(5))  # type: ignore[attr-defined]
    await until(lambda: client.server.draining)  # type: ignore[attr-defined]
    client.send(infer())
    answer = await client.answer()
    assert answer.values == [0, 1, 2, 3] and answer.headers["connection"] == "close"
    assert await task


@scenario()
async def test_a_client_that_leaves_within_a_body_behind_a_known_head_gives_its_bytes_back(
    client: Client, routes: FakeRoutes
) -> None:
    request = infer([[1] * 4] * 16)
    await met(client, request)
    client.send(request[:-3])
    inference = client.server._inference  # type: ignore[attr-defined]
    await until(lambda: inference.buffered_bytes > 0)
    client.writer.close()
    await until(lambda: inference.buffered_bytes == 0)
