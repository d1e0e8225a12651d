"""What is kept of a cluster's nodes, in Redis and in memory.

prism:nodes    string  what the controller reported last
prism:drains   hash    node id -> who wants it drained
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import msgspec

from cluster.nodes import DrainRequest, NodeReports

NODES, DRAINS = "prism:nodes", "prism:drains"


class RedisNodes:
    """Implements `cluster.nodes.NodeStore` on a `RedisStore`'s connections."""

    def __init__(self, client: Any, answering: Callable[[], AbstractContextManager[None]], channel: str) -> None:
        self._redis = client
        self._answering = answering
        self._channel = channel

    def reports(self) -> NodeReports:
        with self._answering():
            found = self._redis.get(NODES)
        try:
            return msgspec.json.decode(found, type=NodeReports) if found else NodeReports()
        except msgspec.DecodeError:  # another version of Prism wrote it; the controller replaces it within seconds
            return NodeReports()

    def report(self, reports: NodeReports) -> None:
        raw = msgspec.json.encode(asdict(reports))
        with self._answering():
            self._redis.set(NODES, raw)

    def drains(self) -> dict[str, DrainRequest]:
        with self._answering():
            found = self._redis.hgetall(DRAINS)
        return {id.decode(): msgspec.json.decode(raw, type=DrainRequest) for id, raw in found.items()}

    def drain(self, node_id: str, request: DrainRequest) -> None:
        with self._answering():
            self._redis.hsetnx(DRAINS, node_id, msgspec.json.encode(asdict(request)))
            self._redis.publish(self._channel, f"drain {node_id}")

    def forget(self, node_id: str) -> None:
        with self._answering():
            self._redis.hdel(DRAINS, node_id)


class MemoryNodes:
    """Implements `cluster.nodes.NodeStore`. `wake` is called after a wish."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._reports = NodeReports()
        self._drains: dict[str, DrainRequest] = {}

    def reports(self) -> NodeReports:
        return self._reports

    def report(self, reports: NodeReports) -> None:
        self._reports = reports

    def drains(self) -> dict[str, DrainRequest]:
        with self._lock:
            return dict(self._drains)

    def drain(self, node_id: str, request: DrainRequest) -> None:
        with self._lock:
            self._drains.setdefault(node_id, request)
        self._wake()

    def forget(self, node_id: str) -> None:
        with self._lock:
            self._drains.pop(node_id, None)
