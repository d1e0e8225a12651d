"""Which replicas a version has, as Ray Serve broadcasts it.

Serve tells every handle of a deployment about its replicas and builds the deployment's request router in each process
that holds one. `deployments.gateway.router.WireRouter` is that router: it passes every list on to the `Membership` of
its process. Replicas that are stopping are no longer in the list; one that was killed is gone after a health check.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

Addresses = dict[str, dict[str, str]]
"""Replica id -> what its `record_replica_metadata` returned, with its Ray node under "node"."""


class Membership:
    """The last list of each application in this process, and who wants to hear of the next. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, Callable[[Addresses], None]] = {}
        self._last: dict[str, Addresses] = {}

    def listen(self, application: str, listener: Callable[[Addresses], None]) -> None:
        """Call `listener`, from any thread, with every list of `application`, the present one first."""
        with self._lock:
            self._listeners[application] = listener
            known = self._last.get(application)
        if known is not None:
            listener(known)

    def forget(self, application: str) -> None:
        """Stop listening and drop what is known."""
        with self._lock:
            self._listeners.pop(application, None)
            self._last.pop(application, None)

    def publish(self, application: str, replicas: Addresses) -> None:
        with self._lock:
            self._last[application] = replicas
            listener = self._listeners.get(application)
        if listener is not None:
            listener(replicas)


MEMBERSHIP = Membership()
