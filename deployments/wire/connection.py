"""One connection's bytes: frames in, buffers out, and what is done when the peer does not read.

Used by both ends. Received bytes go from the socket into `FrameReader`'s memory. While the peer does not take what
was written, a replica reads nothing more from it, so that it cannot be made to hold ever more answers (a gateway goes
on reading: two ends that both stop would wait for each other). A peer that takes nothing for `write_timeout_s`, or for
which more than `max_outgoing_bytes` wait, is disconnected.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import cast

from deployments.call import Buffer
from deployments.wire.frames import STRANGER, Frame, FrameError, FrameReader, Limits

logger = logging.getLogger(__name__)

SOCKET_BUFFER_BYTES = 4 << 20
WRITE_HIGH_BYTES = 4 << 20


class FrameConnection(asyncio.BufferedProtocol):
    """Calls `on_frame` per whole frame (a FrameError from it closes the connection) and `on_lost` once, at the end."""

    def __init__(
        self,
        on_open: Callable[[FrameConnection], None],
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[str], None],
        reads_while_stalled: bool,
        write_timeout_s: float = 30.0,
        max_outgoing_bytes: int = 1 << 30,
    ) -> None:
        self._on_open = on_open
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reads_while_stalled = reads_while_stalled
        self._write_timeout_s = write_timeout_s
        self._max_outgoing_bytes = max_outgoing_bytes
        self._reader = FrameReader(STRANGER)
        self._transport: asyncio.Transport | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._reason = ""

    def admit(self, limits: Limits) -> None:
        """The peer has proved who it is: accept frames up to `limits`."""
        self._reader.limits = limits

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Write the buffers, which must not change until they are on their way. Nothing on a lost connection."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if len(buffers) == 1:
            transport.write(buffers[0])
        else:
            transport.writelines(buffers)
        if self._stalled is not None and transport.get_write_buffer_size() > self._max_outgoing_bytes:
            self.abort("the peer does not read")

    def close(self) -> None:
        """Close once everything that was sent has been taken."""
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once; what was not sent yet is dropped."""
        if self._transport is not None and not self._reason:
            self._reason = reason
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from asyncio's
        tune(transport.get_extra_info("socket"))
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._on_open(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._reader.received(nbytes):
                if self._reason:
                    return
                self._on_frame(frame)
        except FrameError as error:
            logger.warning("wire_closed", extra={"reason": str(error)})
            self.abort(str(error))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        assert self._transport is not None
        if not self._reads_while_stalled:
            self._transport.pause_reading()
        self._stalled = asyncio.get_running_loop().call_later(
            self._write_timeout_s, self.abort, f"the peer read nothing for {self._write_timeout_s:g} s"
        )

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if not self._reads_while_stalled and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self._transport = None
        self._on_lost(self._reason or (str(exc) if exc is not None else "closed by the peer"))


def tune(sock: socket.socket) -> None:
    """Large socket buffers; over TCP no delay, and a dead host is noticed after about 20 s."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000)):
        if hasattr(socket, name):  # not every system has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
