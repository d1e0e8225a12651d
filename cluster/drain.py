"""Whether this node was drained: a thread that asks the store, so that the supervisor never waits for it."""

from __future__ import annotations

import logging
import threading
import time

from cluster.errors import StoreUnavailable
from cluster.nodes import NodeStore

log = logging.getLogger("prism.supervisor")

PERIOD_S = 1.0


class DrainWatch:
    """`wanted`: somebody asked for this node to be drained. `done`: nothing of Prism runs on it any more.

    While the store cannot be reached, what was known last holds.
    """

    def __init__(self, nodes: NodeStore, period_s: float = PERIOD_S) -> None:
        self._nodes = nodes
        self._period_s = period_s
        self._node_id = ""
        self._thread: threading.Thread | None = None
        self.wanted = False
        self.done = False

    def follow(self, node_id: str) -> None:
        """From now on, look after this node: each start of Ray makes a new one."""
        self._node_id = node_id
        self.wanted = self.done = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="drain-watch", daemon=True)
            self._thread.start()

    def look(self) -> None:
        """Ask once. Raises: StoreUnavailable."""
        id = self._node_id
        if id not in self._nodes.drains():
            return
        self.wanted = True
        found = [node.state for node in self._nodes.reports().nodes if node.id == id]
        self.done = found == ["DRAINED"]

    def _run(self) -> None:
        while True:
            time.sleep(self._period_s)
            try:
                self.look()
            except StoreUnavailable as error:
                log.debug("%s", error.message)
