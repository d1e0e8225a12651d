"""A large body's way from a gateway's process to a replica's array: through a Unix socket, and through shared memory.

Both ends run in turn in one thread, so that the time of a call is the CPU of both together. What is compared is the
least that either way needs; `docs/wire.md` has the figures and what was decided by them.
"""

from __future__ import annotations

import mmap
import os
import socket

import numpy as np

from deployments.wire.connection import tune
from deployments.wire.frames import Frame, FrameReader, Kind, encode_frame

BODY_BYTES = 3 * 224 * 224 * 4


class Hop:
    """A connected pair of Unix sockets, a memory file that both ends map, and a body to be sent."""

    def __init__(self) -> None:
        self._gateway, self._replica = socket.socketpair(socket.AF_UNIX)
        for end in (self._gateway, self._replica):
            tune(end)
            end.setblocking(False)
        self._reader = FrameReader()
        self._body = np.random.default_rng(0).bytes(BODY_BYTES)
        descriptor = os.memfd_create("hop")
        try:
            os.ftruncate(descriptor, BODY_BYTES)
            self._written = memoryview(mmap.mmap(descriptor, BODY_BYTES))
            self._read = np.frombuffer(mmap.mmap(descriptor, BODY_BYTES), np.uint8)
        finally:
            os.close(descriptor)

    def through_socket(self) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """The body as the replica gets it: received straight into an array of its own."""
        frame = self._send([encode_frame(Kind.INFER, None, 1, BODY_BYTES), self._body])
        return frame.payload.view(np.float32)

    def through_memory(self) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """The body copied into memory that the replica reads it from; a frame without payload says where."""
        self._written[:] = self._body
        self._send([encode_frame(Kind.INFER, None, 1)])
        return self._read.view(np.float32)

    def _send(self, buffers: list[bytes]) -> Frame:
        waiting = [memoryview(buffer) for buffer in buffers]
        while True:
            if waiting:
                try:
                    sent = self._gateway.sendmsg(waiting)
                except BlockingIOError:
                    sent = 0
                while waiting and sent >= len(waiting[0]):
                    sent -= len(waiting.pop(0))
                if sent:
                    waiting[0] = waiting[0][sent:]
            while True:
                try:
                    count = self._replica.recv_into(self._reader.buffer())
                except BlockingIOError:
                    break
                if frames := self._reader.received(count):
                    return frames[0]
