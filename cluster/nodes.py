"""The nodes of a cluster as the controller reports them, and the operator's wish that one of them be emptied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cluster.errors import InvalidRequest

NodeState = Literal["UP", "DRAINING", "DRAINED"]

ID_DIGITS = 12  # of a node's id, for people
LEAST_DIGITS = 4  # of an id that may stand for it: a slip of the finger names no node


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node. `gateway` is Serve's word for the gateway there, "" where there is none; `door_port` its HTTP port.

    `replicas` counts by "model:version". A node is DRAINED once it was asked to drain and runs nothing any more;
    `reason` says why one that was asked to drain does not. `labels` are those that `prism deploy --on` selects by.
    """

    id: str
    address: str
    name: str
    head: bool = False
    state: NodeState = "UP"
    door_port: int = 0
    gateway: str = ""
    replicas: dict[str, int] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NodeReports:
    """What the controller saw, and when (seconds since 1970)."""

    nodes: tuple[NodeReport, ...] = ()
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DrainRequest:
    """Who wants a node emptied, and since when (seconds since 1970)."""

    by: str
    at_s: float


class NodeStore(Protocol):
    """Kept beside the models; a loss of it costs nothing but the wishes. Raises StoreUnavailable from any method."""

    def reports(self) -> NodeReports:
        """What was reported last."""

    def report(self, reports: NodeReports) -> None:
        """Replace what was reported."""

    def drains(self) -> dict[str, DrainRequest]:
        """Wishes by node id."""

    def drain(self, node_id: str, request: DrainRequest) -> None:
        """Have a node drained; a wish that is there already stays as it is. Wakes the version store's `wait`."""

    def forget(self, node_id: str) -> None:
        """Drop a wish, if there is one."""


def find_node(nodes: Sequence[NodeReport], wanted: str) -> NodeReport:
    """The node that `wanted` names: its address, its name, or at least `LEAST_DIGITS` from the beginning of its id.

    Raises: InvalidRequest if there is none or more than one, saying which there are.
    """
    exact = [node for node in nodes if wanted in (node.id, node.address, node.name)]
    found = exact or [node for node in nodes if len(wanted) >= LEAST_DIGITS and node.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    have = ", ".join(f"{node.id[:ID_DIGITS]} ({node.name}, {node.address})" for node in (found or nodes)) or "none"
    raise InvalidRequest(f"node: {wanted!r} names {'several' if found else 'none'}; there are: {have}")
