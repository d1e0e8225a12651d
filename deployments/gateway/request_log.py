"""Sampled requests in a file: one JSON line each, written off the request path, bounded in memory and on disk."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from pathlib import Path

import orjson

logger = logging.getLogger("prism.gateway")

MAX_WAITING_LINES = 10_000  # between two flushes; the oldest go first
MAX_FILE_BYTES = 16 << 20  # then the file is renamed to `.1`, in place of the one before


class RequestLog:
    """`share` of all requests, in `file`, which several processes may write to. Without a file, nothing is kept.

    `flush` may run in any thread; everything else on the event loop.
    """

    def __init__(self, file: Path | None = None, share: float = 0.0, gateway: str = "") -> None:
        self._file = file
        self._gateway = gateway
        self.share = share if file is not None else 0.0
        self._lines: deque[dict[str, object]] = deque(maxlen=MAX_WAITING_LINES)
        self._writing = threading.Lock()
        self._failed = False

    def wants(self) -> bool:
        """Whether the next request is to be noted; random."""
        return random.random() < self.share

    def note(
        self,
        *,
        status: int,
        request_s: float,
        model: str,
        version: str = "",
        rows: int = 0,
        request_id: str = "",
        traceparent: str = "",
        queue_s: float | None = None,
        run_s: float | None = None,
        batch_rows: int | None = None,
        reason: str = "",
    ) -> None:
        """Keep one line for the next flush.

        Args:
            request_s: From the request's last byte to its answer; of these `queue_s` at the replica before its batch
                and `run_s` in the batch, the rest on the way and in the gateway.
        """
        self._lines.append(
            {
                "at_s": round(time.time(), 3),
                "gateway": self._gateway,
                "request_id": request_id,
                "traceparent": traceparent,
                "model": model,
                "version": version,
                "status": status,
                "rows": rows,
                "request_s": round(request_s, 6),
                "queue_s": None if queue_s is None else round(queue_s, 6),
                "run_s": None if run_s is None else round(run_s, 6),
                "batch_rows": batch_rows,
                "reason": reason[:300],
            }
        )

    @property
    def waiting(self) -> int:
        """Lines not written yet."""
        return len(self._lines)

    def flush(self) -> None:
        """Write what was noted. A disk that is full or gone costs lines, never a request, and is logged once."""
        with self._writing:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if not lines or self._file is None:
                return
            raw = b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)
            try:
                descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                with os.fdopen(descriptor, "ab", buffering=0) as stream:
                    stream.write(raw)  # in one piece, so that lines of several processes do not mix
                    full = stream.tell() > MAX_FILE_BYTES and _is_still(self._file, descriptor)
                if full:
                    self._file.replace(self._file.with_name(self._file.name + ".1"))
                self._failed = False
            except OSError as error:
                if not self._failed:
                    logger.warning("request_log_failed: %s: %s", self._file, error.strerror)
                self._failed = True


def _is_still(file: Path, descriptor: int) -> bool:
    """Whether `file` is what was opened; another process may have renamed it since, and begun a new one."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
