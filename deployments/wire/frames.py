"""The wire's frames: a fixed header, small metadata as MessagePack, then raw tensor bytes. `docs/wire.md` shows them.

`FrameReader` takes bytes in pieces of any size and gives whole frames. It owns the memory that a socket reads into:
headers and metadata go through a staging buffer, and the part of a payload that did not arrive together with its
header is received straight into the array that is handed on. Nothing is allocated before its size was checked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

WIRE_VERSION = 1
MAGIC = b"PW"
HEADER = struct.Struct("<2sBBIQQ")  # magic, version, kind, metadata bytes, payload bytes, call id
ALIGNMENT = 64  # of every tensor in a payload: a cache line, and as wide as any vector register
STAGING_BYTES = 32 << 10
MAX_META_BYTES = 16 << 20
MAX_PAYLOAD_BYTES = 1 << 30

Payload = NDArray[np.uint8]


class FrameError(Exception):
    """The peer sent what cannot be understood or is not allowed. Nothing after it can be trusted: close."""


class Kind(IntEnum):
    """What a frame is. Arrows: > gateway to replica, < replica to gateway."""

    HELLO = 1  # > nonce
    CHALLENGE = 2  # < nonce and the replica's proof that it knows the secret
    PROOF = 3  # > the gateway's proof
    WELCOME = 4  # < who answers, and its limits
    INFER = 5  # > one micro-batch
    RESULT = 6  # < its answer
    CANCEL = 7  # > requests of a micro-batch that nobody waits for any more
    PING = 8  # > the gateway's backlog
    PONG = 9  # < the replica's queue
    DRAIN = 10  # < send no more
    GOODBYE = 11  # > no INFER follows
    DRAINED = 12  # < everything was answered


_KINDS = {int(kind): kind for kind in Kind}

Size = Annotated[int, Meta(ge=0, le=1 << 62)]
Rows = Annotated[int, Meta(ge=1, le=1 << 31)]
Tail = tuple[Size, ...]
Name = Annotated[str, Meta(max_length=256)]


class Hello(msgspec.Struct, array_like=True, frozen=True):
    nonce: Annotated[bytes, Meta(min_length=16, max_length=64)]


class Challenge(msgspec.Struct, array_like=True, frozen=True):
    nonce: Annotated[bytes, Meta(min_length=16, max_length=64)]
    proof: Annotated[bytes, Meta(max_length=64)]


class Proof(msgspec.Struct, array_like=True, frozen=True):
    proof: Annotated[bytes, Meta(max_length=64)]


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """`instance` is new with every start of a replica, so that a reused address is noticed."""

    instance: Name
    digest: Name
    max_payload_bytes: Size
    queue_rows: Size
    ahead_rows: Size = 0


class Infer(msgspec.Struct, array_like=True, frozen=True):
    """One micro-batch. Lists are per request or per input, in order.

    Attributes:
        rows: Rows of each request.
        left_s: Seconds each request has left, from the moment of sending.
        priority: Of all of them.
        tails: Shape of each input without its rows; the whole shape for a model that is not batched.
        sizes: Bytes of each input, all requests together, without padding.
        backlog_rows: What waits in this gateway for this version.
        ids: The clients' request ids, or empty.
        traces: The clients' traceparents, "" for those without, or empty.
    """

    rows: tuple[Rows, ...]
    left_s: tuple[float, ...]
    priority: Annotated[int, Meta(ge=0, le=1)]
    tails: tuple[Tail, ...]
    sizes: tuple[Size, ...]
    backlog_rows: Size = 0
    ids: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()


class Failure(msgspec.Struct, array_like=True, frozen=True):
    index: Size
    error: Name
    message: str


class Result(msgspec.Struct, array_like=True, frozen=True):
    """The answer to one micro-batch. Outputs hold the rows of the requests that did not fail, in order.

    Attributes:
        failures: By request.
        tails: Shape of each output without its rows; the whole shape for a model that is not batched.
        sizes: Bytes of each output, without padding.
        splits: Per output: bytes of each request that did not fail, for BYTES; else empty.
        queue_s: Seconds the micro-batch waited.
        compute_s: Seconds its batch ran.
        batch_rows: Rows of that batch.
        queue_rows: What waits at the replica now.
        ahead_rows: What of it would be computed before an interactive micro-batch that this gateway sent now.
    """

    failures: tuple[Failure, ...]
    tails: tuple[Tail, ...]
    sizes: tuple[Size, ...]
    splits: tuple[tuple[Size, ...], ...]
    queue_s: float
    compute_s: float
    batch_rows: Size
    queue_rows: Size
    ahead_rows: Size = 0


class Cancel(msgspec.Struct, array_like=True, frozen=True):
    """`indices` into the micro-batch whose call id the frame has."""

    indices: tuple[Size, ...]


class Rest(msgspec.Struct, array_like=True, frozen=True):
    """Rows that wait: at the gateway in a PING, at the replica in a PONG, there with `ahead_rows` as in `Result`."""

    rows: Size
    ahead_rows: Size = 0


META: dict[Kind, Any] = {
    Kind.HELLO: Hello,
    Kind.CHALLENGE: Challenge,
    Kind.PROOF: Proof,
    Kind.WELCOME: Welcome,
    Kind.INFER: Infer,
    Kind.RESULT: Result,
    Kind.CANCEL: Cancel,
    Kind.PING: Rest,
    Kind.PONG: Rest,
    Kind.DRAIN: None,
    Kind.GOODBYE: None,
    Kind.DRAINED: None,
}
CARRIES_TENSORS = frozenset((Kind.INFER, Kind.RESULT))

_ENCODER = msgspec.msgpack.Encoder()
_DECODERS = {kind: msgspec.msgpack.Decoder(meta) for kind, meta in META.items() if meta is not None}
_NO_PAYLOAD: Payload = np.empty(0, np.uint8)

_M = TypeVar("_M")


class Frame(NamedTuple):
    """A whole frame: metadata still encoded, payload 64-byte aligned and owned by nobody else."""

    kind: Kind
    call_id: int
    meta: bytes
    payload: Payload


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader accepts."""

    max_meta_bytes: int = MAX_META_BYTES
    max_payload_bytes: int = MAX_PAYLOAD_BYTES


STRANGER = Limits(max_meta_bytes=1024, max_payload_bytes=0)  # before the peer has proved that it knows the secret
FRIEND = Limits()


def encode_frame(kind: Kind, meta: object = None, call_id: int = 0, payload_bytes: int = 0) -> bytes:
    """Header and metadata; the caller sends `payload_bytes` of payload behind them."""
    raw = b"" if meta is None else _ENCODER.encode(meta)
    return HEADER.pack(MAGIC, WIRE_VERSION, kind, len(raw), payload_bytes, call_id) + raw


def decode_meta(frame: Frame, expected: type[_M]) -> _M:
    """The frame's metadata. Raises: FrameError if it is not what this kind of frame carries."""
    try:
        meta = _DECODERS[frame.kind].decode(frame.meta)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError) as error:
        raise FrameError(f"{frame.kind.name}: {error}") from None
    if not isinstance(meta, expected):
        raise FrameError(f"expected {expected.__name__}, got {frame.kind.name}")
    return meta


def empty_aligned(size: int) -> Payload:
    """`size` bytes, not set, starting at a multiple of `ALIGNMENT`."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + size]


class FrameReader:
    """Bytes in, frames out, whatever the pieces.

    Fill some of `buffer()`, then say how much with `received()`. After a FrameError the reader is of no further use.
    """

    __slots__ = ("_call_id", "_end", "_filled", "_kind", "_meta", "_payload", "_staging", "limits")

    def __init__(self, limits: Limits = FRIEND) -> None:
        self.limits = limits
        self._staging = memoryview(bytearray(STAGING_BYTES))
        self._end = 0  # bytes in the staging buffer
        self._payload: Payload | None = None  # being received
        self._filled = 0
        self._kind, self._call_id, self._meta = Kind.HELLO, 0, b""

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._payload is not None:
            return self._payload.data[self._filled :]
        return self._staging[self._end :]

    def received(self, count: int) -> list[Frame]:
        """The frames that became whole with these `count` bytes. Raises: FrameError."""
        if self._payload is not None:
            self._filled += count
            if self._filled < self._payload.size:
                return []
            frame = Frame(self._kind, self._call_id, self._meta, self._payload)
            self._payload = None
            return [frame]
        self._end += count
        return self._parse()

    def _parse(self) -> list[Frame]:
        frames: list[Frame] = []
        at, end, staging = 0, self._end, self._staging
        while end - at >= HEADER.size:
            magic, version, raw_kind, meta_bytes, payload_bytes, call_id = HEADER.unpack_from(staging, at)
            kind = self._check(magic, version, raw_kind, meta_bytes, payload_bytes)
            body = at + HEADER.size + meta_bytes
            if body > end:
                break
            meta = bytes(staging[body - meta_bytes : body])
            if payload_bytes == 0:
                frames.append(Frame(kind, call_id, meta, _NO_PAYLOAD))
                at = body
                continue
            payload = empty_aligned(payload_bytes)
            here = min(payload_bytes, end - body)
            payload.data[:here] = staging[body : body + here]
            at = body + here
            if here == payload_bytes:
                frames.append(Frame(kind, call_id, meta, payload))
            else:
                self._kind, self._call_id, self._meta = kind, call_id, meta
                self._payload, self._filled = payload, here
        self._keep(at)
        return frames

    def _check(self, magic: bytes, version: int, raw_kind: int, meta_bytes: int, payload_bytes: int) -> Kind:
        if magic != MAGIC:
            raise FrameError(f"expected a frame to begin with {MAGIC!r}, got {magic!r}")
        if version != WIRE_VERSION:
            raise FrameError(f"this side speaks wire version {WIRE_VERSION}, the peer {version}")
        kind = _KINDS.get(raw_kind)
        if kind is None:
            raise FrameError(f"unknown kind of frame: {raw_kind}")
        if meta_bytes > self.limits.max_meta_bytes:
            raise FrameError(f"{kind.name}: {meta_bytes} bytes of metadata, at most {self.limits.max_meta_bytes}")
        if payload_bytes and (kind not in CARRIES_TENSORS or payload_bytes > self.limits.max_payload_bytes):
            limit = self.limits.max_payload_bytes if kind in CARRIES_TENSORS else 0
            raise FrameError(f"{kind.name}: {payload_bytes} bytes of payload, at most {limit}")
        return kind

    def _keep(self, at: int) -> None:
        """Move what belongs to the next frame to the front, into a larger buffer if its metadata needs one."""
        waiting = self._end - at
        size = STAGING_BYTES
        if waiting >= HEADER.size:
            size = max(size, HEADER.size + HEADER.unpack_from(self._staging, at)[3])
        if size != len(self._staging):
            larger = memoryview(bytearray(size))
            larger[:waiting] = self._staging[at : self._end]
            self._staging = larger
        elif at:
            self._staging[:waiting] = bytes(self._staging[at : self._end])
        self._end = waiting
