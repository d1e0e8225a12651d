"""Whether this node was drained: a thread that asks the store, so that the supervisor never waits for it."""

from __future__ import annotations

import logging
import threading
import time

from cluster.errors import StoreUnavailable
from cluster.nodes import NodeStore

log = logging.getLogger("prism.supervisor")

PERIOD_S = 1.0
_LIVES = 64  # ids that are remembered: an older one's wish was forgotten long ago


class DrainWatch:
    """`wanted`: somebody asked for this node to be drained. `done`: nothing of Prism runs on it any more.

    Each start of Ray gives the node a new id, and a wish names the one that the operator saw. So a wish for any id
    that the node has had since its supervisor started counts, and is passed on to the present one. While the store
    cannot be reached, what was known last holds.
    """

    def __init__(self, nodes: NodeStore, period_s: float = PERIOD_S) -> None:
        self._nodes = nodes
        self.period_s = period_s
        self._ids: tuple[str, ...] = ()  # the present one last
        self._thread: threading.Thread | None = None
        self.wanted = False
        self.done = False

    def follow(self, node_id: str) -> None:
        """From now on this is the node's id."""
        self.done = False
        self._ids = (*self._ids, node_id)[-_LIVES:]
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="drain-watch", daemon=True)
            self._thread.start()

    def look(self) -> None:
        """Ask once. Raises: StoreUnavailable."""
        ids = self._ids
        wishes = self._nodes.drains()
        wish = next((wishes[id] for id in reversed(ids) if id in wishes), None)
        if wish is None:
            return
        self.wanted = True
        if ids[-1] not in wishes:
            self._nodes.drain(ids[-1], wish)
        states = [node.state for node in self._nodes.reports().nodes if node.id == ids[-1]]
        if ids is self._ids:  # Ray may have been started again meanwhile
            self.done = states == ["DRAINED"]

    def _run(self) -> None:
        while True:
            time.sleep(self.period_s)
            try:
                self.look()
            except StoreUnavailable as error:
                log.debug("%s", error.message)
