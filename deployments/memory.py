"""How this process keeps and collects memory while it answers requests."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # Source: glibc, malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20  # on 64 bits, more is refused


def keep_freed_memory(kept_bytes: int = 256 << 20) -> bool:
    """Keep up to `kept_bytes` of freed memory for the next request's body; whether the C library can.

    As it comes, glibc gives buffers of more than 128 KiB back to the system when they are freed, and the kernel clears
    every page anew for the next one: with bodies of 600 KB that was a third of a gateway's CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)) and bool(mallopt(_M_TRIM_THRESHOLD, kept_bytes))


def freeze_start_up() -> None:
    """Take what start-up made out of every later collection, and collect seldom: requests make no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
