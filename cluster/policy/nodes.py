"""Which nodes have a gateway, which are to be drained now, and what is said of each.

Pure: the controller reads Ray, Serve and the store, asks, and carries it out.

Ray counts a node as idle only while no actor at all runs there, also none that takes 0 CPU. So a node that Ray's
autoscaler may take away has a gateway only while replicas run on it, and for a while after the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.nodes import DrainRequest, NodeReport, NodeState

LINGER_S = 30.0  # a gateway stays for so long after the last replica on its node
LEAVE_S = 8.0  # a gateway has heard within 3 s that its node drains, and fails its health checks before it is deleted
RETRY_S = 15.0  # a gateway that could not be started is tried again after so long
REMEMBER_DRAIN_S = 3600.0  # a node that has left may still ask whether it was meant to
REFUSED_FIRST_S = 2.0  # a drain that was refused is asked for again after so long, each time twice as long
REFUSED_MOST_S = 60.0


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A live node as Ray reports it. `door_port` is 0 where no gateway can listen, because nothing opened a door.

    `idle_gateway`: it keeps a gateway also while no replica runs on it. `replicas` counts by "model:version".
    """

    id: str
    address: str
    name: str
    head: bool = False
    door_port: int = 0
    idle_gateway: bool = True
    draining: bool = False
    replicas: Mapping[str, int] = field(default_factory=dict)
    total: Mapping[str, float] = field(default_factory=dict)
    available: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """When a node was last seen with replicas; since when it drains, and its gateway has failed. None: never, or not
    now."""

    busy_at_s: float | None = None
    draining_at_s: float | None = None
    failed_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """Node ids whose gateway is to be run or deleted now, and what to remember."""

    run: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    memory: dict[str, NodeMemory] = field(default_factory=dict)


def plan_gateways(
    nodes: Mapping[str, NodeSeen], gateways: Mapping[str, str], memory: Mapping[str, NodeMemory], now_s: float
) -> GatewayPlan:
    """The next step for every node's gateway.

    Args:
        nodes: Live nodes by id.
        gateways: Serve's status of every gateway application, by node id.
        memory: `GatewayPlan.memory` of the last call.
        now_s: Any monotonic clock.
    """
    run: list[str] = []
    delete = [id for id, status in gateways.items() if id not in nodes and status != "DELETING"]
    kept: dict[str, NodeMemory] = {}
    for id, node in nodes.items():
        before = memory.get(id, NodeMemory())
        busy_at_s = now_s if node.replicas else before.busy_at_s
        status = gateways.get(id)
        draining_at_s = _since(before.draining_at_s, node.draining, now_s)
        failed_at_s = _since(before.failed_at_s, status == "DEPLOY_FAILED", now_s)
        kept[id] = NodeMemory(busy_at_s, draining_at_s, failed_at_s)
        if draining_at_s is not None:
            if status not in (None, "DELETING") and now_s - draining_at_s >= LEAVE_S:
                delete.append(id)
        elif not _wanted(node, busy_at_s, now_s):
            if status not in (None, "DELETING"):
                delete.append(id)
        elif status is None:
            run.append(id)
        elif failed_at_s is not None and now_s - failed_at_s >= RETRY_S:
            delete.append(id)  # and run again once it is gone
    return GatewayPlan(tuple(run), tuple(delete), kept)


def _since(before_s: float | None, now: bool, now_s: float) -> float | None:
    """Since when something is so; None if it is not."""
    if not now:
        return None
    return now_s if before_s is None else before_s


def _wanted(node: NodeSeen, busy_at_s: float | None, now_s: float) -> bool:
    if not node.door_port:
        return False
    return node.head or node.idle_gateway or (busy_at_s is not None and now_s - busy_at_s <= LINGER_S)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that could not be drained: why, how often that was so, and when to try again."""

    why: str
    times: int
    again_at_s: float


@dataclass(frozen=True, slots=True)
class DrainPlan:
    """Node ids to ask Ray to drain now, those whose wish may be forgotten, and the refusals that still matter."""

    drain: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()
    refusals: dict[str, Refusal] = field(default_factory=dict)


def plan_drains(
    nodes: Mapping[str, NodeSeen],
    wishes: Mapping[str, DrainRequest],
    refusals: Mapping[str, Refusal],
    now_s: float,
    time_s: float,
) -> DrainPlan:
    """The next step for every wish to drain a node. The head is never drained: the cluster ends with it.

    Args:
        refusals: `DrainPlan.refusals` of the last call, with what was refused since.
        now_s: The clock of `Refusal.again_at_s`: any monotonic one.
        time_s: Seconds since 1970.
    """
    due = [id for id in wishes if id in nodes and not nodes[id].draining and not nodes[id].head]
    kept = {id: refusals[id] for id in due if id in refusals}
    drain = tuple(id for id in due if id not in kept or now_s >= kept[id].again_at_s)
    forget = tuple(id for id, wish in wishes.items() if id not in nodes and abs(time_s - wish.at_s) > REMEMBER_DRAIN_S)
    return DrainPlan(drain, forget, kept)


def after_drain_refused(before: Refusal | None, why: str, now_s: float) -> Refusal:
    """What to remember of a drain that was refused once more."""
    times = before.times if before is not None else 0
    return Refusal(why, times + 1, now_s + min(REFUSED_FIRST_S * 2.0 ** min(times, 32), REFUSED_MOST_S))


def node_reports(
    nodes: Mapping[str, NodeSeen], gateways: Mapping[str, str], refusals: Mapping[str, Refusal]
) -> tuple[NodeReport, ...]:
    """What to report, the head first, then by address and id."""
    return tuple(
        NodeReport(
            id=node.id,
            address=node.address,
            name=node.name,
            head=node.head,
            state=_state(node, gateways),
            door_port=node.door_port,
            gateway=gateways.get(node.id, ""),
            replicas=dict(sorted(node.replicas.items())),
            total=dict(sorted(node.total.items())),
            used={
                name: round(total - node.available.get(name, total), 4) for name, total in sorted(node.total.items())
            },
            labels=dict(sorted(node.labels.items())),
            reason=f"cannot be drained: {refusals[node.id].why}" if node.id in refusals else "",
        )
        for node in sorted(nodes.values(), key=lambda node: (not node.head, node.address, node.id))
    )


def _state(node: NodeSeen, gateways: Mapping[str, str]) -> NodeState:
    if not node.draining:
        return "UP"
    return "DRAINING" if node.replicas or node.id in gateways else "DRAINED"
