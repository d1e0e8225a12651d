"""Hearing at once that something was committed: a thread that listens to a channel, and threads that wait for it.

A hint and no more. What is published while the connection is down is lost, so a connection made anew counts as a
hint itself, and readers poll besides.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import redis

LISTEN_S = 0.5  # how long the thread may take to notice that it was closed
RETRY_S = (0.1, 2.0)  # first and longest pause between attempts to connect


class Hints:
    """Listens to `channel` from the first `wait` on."""

    def __init__(self, client: Any, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._heard = threading.Condition()
        self._count = 0
        self._seen = 0
        self._tried = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def wait(self, timeout_s: float) -> bool:
        """True once something was heard since the last call returned, False after `timeout_s`.

        Threads that wait at the same time are all woken.
        """
        until_s = time.monotonic() + timeout_s
        with self._heard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="prism-store-hints", daemon=True)
                self._thread.start()
        self._tried.wait(timeout_s)
        with self._heard:
            seen = self._seen
            woken = self._heard.wait_for(lambda: self._count != seen, max(0.0, until_s - time.monotonic()))
            self._seen = self._count
            return woken

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._closed.set()

    def _run(self) -> None:
        pause_s = RETRY_S[0]
        while not self._closed.is_set():
            listener = self._client.pubsub()
            try:
                listener.subscribe(self._channel)
                if listener.get_message(timeout=LISTEN_S) is None:
                    raise redis.TimeoutError("no answer to SUBSCRIBE")
                if self._tried.is_set():
                    self._tell()
                self._tried.set()
                pause_s = RETRY_S[0]
                while not self._closed.is_set():
                    message = listener.get_message(timeout=LISTEN_S)
                    if message is not None and message["type"] == "message":
                        self._tell()
            except (redis.RedisError, OSError):
                self._tried.set()
                self._closed.wait(pause_s)
                pause_s = min(pause_s * 2, RETRY_S[1])
            finally:
                listener.close()

    def _tell(self) -> None:
        with self._heard:
            self._count += 1
            self._heard.notify_all()
