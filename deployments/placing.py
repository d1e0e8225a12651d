"""What each version's replicas need of a node, and which of them no node has taken: the controller's side of
`cluster.policy.placement`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cluster.documents import VersionRecord, VersionStatus
from cluster.policy.nodes import NodeSeen
from cluster.policy.placement import (
    Demand,
    NodeRoom,
    Unplaced,
    demand_of,
    explained,
    fits_some,
    unplaced,
    uses_gpu,
)
from converters.runtime import can_use_gpu


class Placing:
    """Keeps what was seen last of nodes and of replicas that wait: `look` before anything else."""

    def __init__(self) -> None:
        self._rooms: tuple[NodeRoom, ...] = ()
        self._unplaced: dict[str, Unplaced] = {}

    def look(self, nodes: Iterable[NodeSeen], counts: Mapping[str, int], now_s: float) -> None:
        """Take note of the live nodes, and of how many replicas of each application no node has taken."""
        self._rooms = tuple(NodeRoom(node.total, node.available, node.labels) for node in nodes if not node.draining)
        self._unplaced = unplaced(counts, self._unplaced, now_s)

    def demand(self, record: VersionRecord, before: VersionStatus | None) -> Demand:
        """What one replica of a deployed version needs; `before`: what was reported of it last."""
        offered = any(room.total.get("GPU") for room in self._rooms) and can_use_gpu(record.format)
        return demand_of(record, uses_gpu(record, before, offered))

    def possible(self, demands: Mapping[str, Demand]) -> dict[str, Demand]:
        """Those of `demands` that a node there is now could take."""
        return {name: demand for name, demand in demands.items() if fits_some(demand, self._rooms)}

    def explain(self, name: str, status: VersionStatus, demand: Demand, now_s: float) -> VersionStatus:
        """`status` of an application with what waits for a node and why."""
        return explained(status, demand, self._unplaced.get(name), self._rooms, now_s)
