"""Timers of microseconds on an event loop whose own timers count milliseconds."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from collections.abc import Callable

_MONOTONIC, _NONBLOCK, _CLOEXEC = 1, 0o4000, 0o2000000  # linux/time.h, asm-generic/fcntl.h
_TIMES = struct.Struct("@qqqq")  # struct itimerspec: interval (s, ns), first (s, ns)


class Alarm:
    """Calls `ring` once per `after`. Where there is no timerfd (anything but Linux), to the loop's own precision."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop, self._ring = loop, ring
        self._libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        self._fd = -1
        if self._libc is not None:
            self._fd = self._libc.timerfd_create(_MONOTONIC, _NONBLOCK | _CLOEXEC)
        if self._fd >= 0:
            loop.add_reader(self._fd, self._read)

    def after(self, seconds: float) -> None:
        """Ring once, `seconds` from now, instead of what was asked for before."""
        if self._fd < 0:
            self._loop.call_later(seconds, self._ring)
            return
        nanoseconds = max(1, int(seconds * 1e9))  # 0 would mean never
        times = _TIMES.pack(0, 0, nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)
        assert self._libc is not None
        if self._libc.timerfd_settime(self._fd, 0, times, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._ring()
