from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.wire.frames import (
    ALIGNMENT,
    CARRIES_TENSORS,
    FRIEND,
    HEADER,
    MAGIC,
    META,
    STAGING_BYTES,
    STRANGER,
    WIRE_VERSION,
    Frame,
    FrameError,
    FrameReader,
    Hello,
    Infer,
    Kind,
    Limits,
    Rest,
    decode_meta,
    encode_frame,
)


def read(data: bytes, pieces: list[int], limits: Limits = FRIEND) -> list[Frame]:
    """Feed `data` in pieces of the given sizes (the last size goes on for ever)."""
    reader = FrameReader(limits)
    frames: list[Frame] = []
    at = turn = 0
    while at < len(data):
        buffer = reader.buffer()
        count = min(len(buffer), pieces[min(turn, len(pieces) - 1)], len(data) - at)
        assert count > 0
        buffer[:count] = data[at : at + count]
        frames += reader.received(count)
        at += count
        turn += 1
    return frames


PAYLOADS = st.one_of(st.binary(max_size=200), st.integers(0, 3 * STAGING_BYTES).map(lambda n: bytes([n % 251]) * n))
SENT = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(sorted(CARRIES_TENSORS)), PAYLOADS),
        st.tuples(st.sampled_from(sorted(set(Kind) - CARRIES_TENSORS)), st.just(b"")),
    ),
    max_size=6,
)
PIECES = st.lists(st.integers(1, 2 * STAGING_BYTES), min_size=1, max_size=8)


@settings(deadline=None)  # a long stream in pieces of one byte takes a while
@given(SENT, PIECES, st.integers(0, 2 * STAGING_BYTES))
def test_frames_come_out_as_they_went_in_wherever_the_stream_is_cut(
    sent: list[tuple[Kind, bytes]], pieces: list[int], filler: int
):
    meta = bytes(filler)
    stream = b"".join(encode_frame(k, meta, i, len(p)) + p for i, (k, p) in enumerate(sent))
    frames = read(stream, pieces)
    assert [(f.kind, f.call_id, f.payload.tobytes()) for f in frames] == [(k, i, p) for i, (k, p) in enumerate(sent)]
    assert all(msgspec.msgpack.decode(f.meta) == meta for f in frames)
    assert all(f.payload.ctypes.data % ALIGNMENT == 0 for f in frames if f.payload.size)


def test_byte_by_byte_gives_the_same_frames():
    stream = encode_frame(Kind.PING, Rest(7)) + encode_frame(Kind.INFER, Rest(1), 9, 5) + b"hello"
    frames = read(stream, [1])
    assert decode_meta(frames[0], Rest) == Rest(7)
    assert (frames[1].call_id, frames[1].payload.tobytes()) == (9, b"hello")


@given(st.binary(max_size=200), PIECES)
def test_any_bytes_give_frames_or_a_frame_error(data: bytes, pieces: list[int]):
    try:
        for frame in read(data, pieces):
            decode_any(frame)
    except FrameError:
        pass


@given(
    st.integers(0, 255),
    st.integers(0, 255),
    st.one_of(st.integers(0, 40), st.integers(0, (1 << 32) - 1)),
    st.one_of(st.integers(0, 40), st.integers(0, (1 << 64) - 1)),
    st.binary(max_size=100),
    PIECES,
)
def test_a_header_with_any_fields_gives_frames_or_a_frame_error(version, kind, meta_bytes, payload_bytes, rest, pieces):
    version = WIRE_VERSION if version > 20 else version
    data = HEADER.pack(MAGIC, version, kind % 16, meta_bytes, payload_bytes, 1) + rest
    try:
        for frame in read(data, pieces, Limits(1000, 10_000)):
            decode_any(frame)
    except FrameError:
        pass


@given(
    st.sampled_from(sorted(Kind)),
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(1 << 63), (1 << 64) - 1)
            | st.floats()
            | st.text(max_size=5)
            | st.binary(max_size=40),
            lambda inner: st.lists(inner, max_size=5),
            max_leaves=20,
        ).map(msgspec.msgpack.encode),
    ),
)
def test_any_metadata_is_understood_or_a_frame_error(kind: Kind, meta: bytes):
    try:
        decode_any(Frame(kind, 0, meta, np.empty(0, np.uint8)))
    except FrameError:
        pass


def decode_any(frame: Frame) -> None:
    expected = META[frame.kind]
    if expected is not None:
        decode_meta(frame, expected)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (HEADER.pack(b"GE", WIRE_VERSION, 1, 0, 0, 0), "begin with"),
        (HEADER.pack(MAGIC, 99, 1, 0, 0, 0), "the peer 99"),
        (HEADER.pack(MAGIC, WIRE_VERSION, 77, 0, 0, 0), "unknown kind of frame: 77"),
        (HEADER.pack(MAGIC, WIRE_VERSION, Kind.PING, 1 << 31, 0, 0), "bytes of metadata"),
        (HEADER.pack(MAGIC, WIRE_VERSION, Kind.INFER, 0, 1 << 60, 0), "bytes of payload"),
        (HEADER.pack(MAGIC, WIRE_VERSION, Kind.PING, 0, 1, 0), "at most 0"),
    ],
)
def test_a_header_that_is_not_allowed_is_refused_before_anything_is_allocated(frame: bytes, message: str):
    with pytest.raises(FrameError, match=message):
        read(frame, [len(frame)])


def test_a_stranger_may_not_send_tensors_or_much_metadata():
    with pytest.raises(FrameError, match="bytes of payload"):
        read(encode_frame(Kind.INFER, None, 0, 1) + b"x", [100], STRANGER)
    with pytest.raises(FrameError, match="bytes of metadata"):
        read(encode_frame(Kind.HELLO, Hello(bytes(2000))), [100], STRANGER)


def test_metadata_of_another_kind_is_refused():
    (frame,) = read(encode_frame(Kind.PING, Rest(1)), [100])
    with pytest.raises(FrameError, match="expected Infer, got PING"):
        decode_meta(frame, Infer)


def test_a_payload_larger_than_the_staging_buffer_is_received_into_its_own_memory():
    reader = FrameReader()
    size = 10 * STAGING_BYTES
    head = encode_frame(Kind.INFER, None, 1, size)
    reader.buffer()[: len(head)] = head
    assert reader.received(len(head)) == []
    target = reader.buffer()
    assert len(target) == size
    (frame,) = reader.received(size)
    assert np.shares_memory(frame.payload, np.frombuffer(target, np.uint8))
