"""Which replicas a version has, as Ray Serve broadcasts it.

Serve tells every handle of a deployment about its replicas and builds the deployment's request router in each process
that holds one. `deployments.gateway.router.WireRouter` is that router: it passes every list on to the `Membership` of
its process. Replicas that are stopping are no longer in the list; one that was killed is gone after a health check.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from deployments.startup import METADATA, Start

Addresses = dict[str, dict[str, str]]
"""Replica id -> what its `record_replica_metadata` returned, with its Ray node under "node"."""

GONE_KEPT = 64  # replicas of which it is still known when they were met


@dataclass(frozen=True, slots=True)
class StartSeen:
    """How a replica started, and how long after it could answer this process learned of it; None if this process was
    not listening yet."""

    replica: str
    start: Start
    seen_after_s: float | None


class Membership:
    """The last list of each application in this process, and who wants to hear of the next. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, Callable[[Addresses], None]] = {}
        self._last: dict[str, Addresses] = {}
        self._since_s: dict[str, float] = {}
        self._met_s: dict[str, dict[str, float]] = {}  # by application and replica, Unix time

    def listen(self, application: str, listener: Callable[[Addresses], None]) -> None:
        """Call `listener`, from any thread, with every list of `application`, the present one first."""
        with self._lock:
            self._listeners[application] = listener
            self._since_s.setdefault(application, time.time())
            known = self._last.get(application)
        if known is not None:
            listener(known)

    def forget(self, application: str) -> None:
        """Stop listening and drop what is known."""
        with self._lock:
            self._listeners.pop(application, None)
            self._last.pop(application, None)
            self._since_s.pop(application, None)
            self._met_s.pop(application, None)

    def publish(self, application: str, replicas: Addresses) -> None:
        with self._lock:
            self._last[application] = replicas
            # A replica whose settings change in place leaves the list for a moment.
            met_s = dict.fromkeys(replicas, time.time()) | self._met_s.get(application, {})
            gone = [replica for replica in met_s if replica not in replicas][GONE_KEPT:]
            self._met_s[application] = {replica: at_s for replica, at_s in met_s.items() if replica not in gone}
            listener = self._listeners.get(application)
        if listener is not None:
            listener(replicas)

    def starts(self, application: str) -> list[StartSeen]:
        """Of the replicas in the last list, those that said how they started."""
        with self._lock:
            last, met_s = self._last.get(application, {}), self._met_s.get(application, {})
            since_s = self._since_s.get(application, float("inf"))
        found = []
        for replica, metadata in last.items():
            start = Start.decode(metadata.get(METADATA, ""))
            if start is not None:
                late_s = max(0.0, met_s[replica] - start.ready_s) if since_s < start.ready_s else None
                found.append(StartSeen(replica, start, late_s))
        return found


MEMBERSHIP = Membership()
