"""Steady traffic against a gateway while something happens to it, and what came of it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp


@dataclass
class Outcome:
    """Every request counted once."""

    sent: int = 0
    status: Counter = field(default_factory=Counter)  # HTTP status, or the name of a connection error
    versions: Counter = field(default_factory=Counter)  # of answers with status 200
    wrong: list = field(default_factory=list)
    bodies: list = field(default_factory=list)  # of answers that were not 200, at most 20
    latencies_s: list = field(default_factory=list)

    @property
    def ok(self) -> int:
        return self.status[200]

    @property
    def failed(self) -> dict:
        return {k: n for k, n in self.status.items() if k != 200}


class Traffic:
    """`workers` connections that send one request after the other until stopped; use as a context manager.

    `body(i)` gives the JSON body of request i and the value that its answer's first element must have (or None). `url`
    may be changed meanwhile. A connection that breaks goes on at `instead`, where that is given.
    """

    def __init__(
        self,
        url: str,
        body,
        *,
        workers: int = 4,
        pause_s: float = 0.0,
        headers=None,
        instead: str = "",
        timeout_s: float = 40.0,
    ):
        self.url, self.body, self.instead = url, body, instead
        self.workers, self.pause_s, self.headers = workers, pause_s, headers or {}
        self.timeout_s = timeout_s
        self.outcome = Outcome()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(self.timeout_s + 20)
        assert not self._thread.is_alive(), "traffic did not come to an end: a request hangs"

    def wait_for(self, count: int, timeout_s: float = 30.0) -> None:
        """Until `count` more requests were answered with 200."""
        goal, deadline_s = self.outcome.ok + count, time.monotonic() + timeout_s
        while self.outcome.ok < goal:
            assert time.monotonic() < deadline_s, f"only {self.outcome.status} {self.outcome.bodies[:3]}"
            time.sleep(0.02)

    async def _all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(self._one(session, i) for i in range(self.workers)))

    async def _one(self, session: aiohttp.ClientSession, worker: int) -> None:
        out, i, broken = self.outcome, worker, False
        while not self._stop.is_set():
            body, expected = self.body(i)
            headers = {"Content-Type": "application/json", **{k: v(i) for k, v in self.headers.items()}}
            out.sent += 1
            started_s = time.monotonic()
            try:
                url = self.instead if broken and self.instead else self.url
                async with session.post(url, data=json.dumps(body), headers=headers) as response:
                    raw = await response.read()
                    out.status[response.status] += 1
                    if response.status == 200:
                        out.latencies_s.append(time.monotonic() - started_s)
                        answer = json.loads(raw)
                        out.versions[answer["model_version"]] += 1
                        got = answer["outputs"][0]["data"][0]
                        if expected is not None and abs(got - expected) > 1e-4 * max(1.0, abs(expected)):
                            out.wrong.append((i, expected, got))
                    elif len(out.bodies) < 20:
                        out.bodies.append((response.status, raw[:300]))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                out.status[type(error).__name__] += 1
                broken = True
            i += self.workers
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
