"""Requests that keep flowing while the demo moves traffic, every one of them counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException

import numpy as np

from cluster.cli.demo.network import Images


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was sent (on `time.monotonic()`), what answered it, and how long it took in seconds.

    `status` is the HTTP status, or 0 where the connection broke; `right` says that the class was the expected one.
    """

    sent_s: float
    status: int
    version: str
    right: bool
    took_s: float


class Flow:
    """Threads that send one picture after the other; a context manager, so that they always end."""

    def __init__(self, port: int, model: str, pictures: list[Images], classes: list[int], threads: int = 2) -> None:
        self._port = port
        self._path = f"/v2/models/{model}/infer"
        self._bodies = [picture.tobytes() for picture in pictures]
        self._classes = classes
        self._stop = threading.Event()
        self._answers: list[Answer] = []
        self._threads = [threading.Thread(target=self._send, args=(i,), daemon=True) for i in range(threads)]

    def __enter__(self) -> Flow:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def answers(self) -> list[Answer]:
        """Everything answered until now, oldest first."""
        return list(self._answers)

    def since(self, mark: int) -> list[Answer]:
        return self._answers[mark:]

    def wait(self, count: int, timeout_s: float = 60.0) -> list[Answer]:
        """The next `count` answers, or what came of them in time."""
        mark, end_s = len(self._answers), time.monotonic() + timeout_s
        while len(self._answers) - mark < count and time.monotonic() < end_s:
            time.sleep(0.02)
        return self.since(mark)

    def _send(self, offset: int) -> None:
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
        connection = HTTPConnection("127.0.0.1", self._port, timeout=40)
        turn = offset
        while not self._stop.is_set():
            picture = turn % len(self._bodies)
            turn += 1
            sent_s = time.monotonic()
            status, version, right = 0, "", False
            try:
                connection.request("POST", self._path, self._bodies[picture], headers)
                response = connection.getresponse()
                body = response.read()
                status, version = response.status, response.getheader("X-Prism-Model-Version", "")
                if status == 200:
                    header = int(response.getheader("Inference-Header-Content-Length", "0"))
                    right = int(np.frombuffer(body[header:], np.float32).argmax()) == self._classes[picture]
            except (OSError, HTTPException, ValueError):
                status = status if status != 200 else 0
                connection.close()
            self._answers.append(Answer(sent_s, status, version, right, time.monotonic() - sent_s))
        connection.close()


@dataclass(frozen=True, slots=True)
class Tally:
    """Answers counted."""

    total: int
    failed: int
    wrong: int
    by_version: dict[str, int]

    @classmethod
    def of(cls, answers: list[Answer]) -> Tally:
        good = [a for a in answers if a.status == 200]
        return cls(
            total=len(answers),
            failed=len(answers) - len(good),
            wrong=sum(not a.right for a in good),
            by_version=dict(sorted(Counter(a.version for a in good).items())),
        )

    def share(self, version: str) -> float:
        """The version's share of the good answers, 0..1."""
        good = self.total - self.failed
        return self.by_version.get(version, 0) / good if good else 0.0
