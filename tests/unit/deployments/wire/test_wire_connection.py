from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from deployments.wire.connection import FrameConnection
from deployments.wire.frames import Frame, Kind, Rest, encode_frame
from deployments.wire.handshake import GATEWAY, REPLICA, new_nonce, proof, proves


class FakeTransport:
    """Records what a connection does to its transport."""

    def __init__(self) -> None:
        self.sock, self.other = socket.socketpair()
        self.done: list[str] = []
        self.waiting_bytes = 0

    def get_extra_info(self, name: str) -> Any:
        return self.sock

    def set_write_buffer_limits(self, high: int) -> None: ...

    def is_closing(self) -> bool:
        return "abort" in self.done

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes

    def write(self, data: bytes) -> None:
        self.done.append("write")

    def pause_reading(self) -> None:
        self.done.append("pause")

    def resume_reading(self) -> None:
        self.done.append("resume")

    def abort(self) -> None:
        self.done.append("abort")


class Side:
    def __init__(self, **options: Any) -> None:
        self.frames: list[Frame] = []
        self.lost: list[str] = []
        options = {"reads_while_stalled": False, **options}
        self.connection = FrameConnection(lambda _: None, self.frames.append, self.lost.append, **options)
        self.transport = FakeTransport()
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def feed(self, data: bytes) -> None:
        self.connection.get_buffer(-1)[: len(data)] = data
        self.connection.buffer_updated(len(data))


@pytest.fixture
async def side():
    return Side()


async def test_nothing_is_read_from_a_peer_that_does_not_read(side: Side):
    side.connection.pause_writing()
    side.connection.resume_writing()
    assert side.transport.done == ["pause", "resume"]


async def test_a_gateway_goes_on_reading_so_that_two_stalled_ends_cannot_wait_for_each_other():
    side = Side(reads_while_stalled=True)
    side.connection.pause_writing()
    side.connection.resume_writing()
    assert side.transport.done == []


async def test_a_peer_that_reads_nothing_for_too_long_is_disconnected():
    side = Side(write_timeout_s=0.0)
    side.connection.pause_writing()
    await asyncio.sleep(0.01)
    assert side.transport.done == ["pause", "abort"]
    side.connection.connection_lost(None)
    assert side.lost == ["the peer read nothing for 0 s"]


async def test_answers_for_a_peer_that_does_not_read_are_bounded():
    side = Side(max_outgoing_bytes=100)
    side.connection.pause_writing()
    side.transport.waiting_bytes = 101
    side.connection.send([b"x"])
    side.connection.send([b"y"])
    assert side.transport.done == ["pause", "write", "abort"]
    side.connection.connection_lost(None)


async def test_frames_after_a_bad_one_are_not_looked_at(side: Side):
    good = encode_frame(Kind.PING, Rest(1))
    side.feed(good)
    side.feed(b"\0" * 24 + good)
    assert len(side.frames) == 1
    assert side.transport.done == ["abort"]


def test_a_proof_fits_one_role_one_pair_of_nonces_and_one_secret():
    a, b = new_nonce(), new_nonce()
    shown = proof("secret", GATEWAY, a, b)
    assert proves(shown, "secret", GATEWAY, a, b)
    for other in (("other", GATEWAY, a, b), ("secret", REPLICA, a, b), ("secret", GATEWAY, b, a)):
        assert not proves(shown, *other)
