"""Waking a greenlet on time.

gevent sleeps in whole milliseconds, rounded up: every request would be sent half a millisecond late or more, and its
latency, which counts from the due time, be as much longer. Linux has timers to the nanosecond that can be waited for as
one waits for a socket.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Protocol

import gevent
from gevent.hub import get_hub

_CLOCK_MONOTONIC, _NONBLOCK, _CLOEXEC, _ABSOLUTE = 1, 0o4000, 0o2000000, 1  # <time.h>, <sys/timerfd.h> on Linux


class Alarm(Protocol):
    """Lets one greenlet wait until a moment on `time.perf_counter`; at once if that is over."""

    def wait_until(self, at_s: float) -> None: ...

    def close(self) -> None: ...


class SleepAlarm:
    """gevent's own timer: late by a millisecond or so."""

    def wait_until(self, at_s: float) -> None:
        gevent.sleep(max(at_s - time.perf_counter(), 0))

    def close(self) -> None:
        pass


class TimerAlarm:
    """A timerfd, which keeps `perf_counter`'s clock. Raises: OSError where there is none."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK | _CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._watcher = get_hub().loop.io(self._fd, 1)

    def wait_until(self, at_s: float) -> None:
        if at_s <= time.perf_counter():
            gevent.sleep(0)
            return
        seconds, fraction = divmod(at_s, 1.0)
        # No interval, then the moment; a timer of 0 would be none.
        spec = (ctypes.c_long * 4)(0, 0, int(seconds), max(int(fraction * 1e9), 1))
        if self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        get_hub().wait(self._watcher)
        os.read(self._fd, 8)

    def close(self) -> None:
        self._watcher.close()
        os.close(self._fd)


def alarm() -> Alarm:
    """The most exact alarm of this system."""
    if sys.platform == "linux" and time.get_clock_info("perf_counter").implementation.endswith("(CLOCK_MONOTONIC)"):
        try:
            return TimerAlarm()
        except (OSError, AttributeError):
            pass  # a C library without it
    return SleepAlarm()
