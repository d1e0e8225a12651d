"""The cluster's nodes as Ray and Serve report them, and Ray's own draining of one.

What Ray offers for this is not public everywhere; its version is pinned.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray
from ray.core.generated import autoscaler_pb2
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeInstanceDetails, ServeStatus

from cluster.policy.nodes import NodeSeen
from cluster.ray_head import DOOR_LABEL, GATEWAY_LABEL, WITH_REPLICAS
from deployments import applications as apps

TIMEOUT_S = 5.0

_HEAD = "node:__internal_head__"
_SHOWN = ("CPU", "GPU", "memory")  # and whatever the operator named; never the names Ray makes for its own use


def serve_seen() -> tuple[ServeStatus, dict[str, dict[str, int]], dict[str, int]]:
    """Serve's status; the model replicas on each node: node id -> "model:version" -> count; and by application how
    many replicas no node has taken yet."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return ServeStatus(), {}, {}
    details = ServeInstanceDetails(**client.get_serve_details())
    found: dict[str, Counter[str]] = {}
    unplaced: Counter[str] = Counter()
    for name, app in details.applications.items():
        version = apps.parse_app_name(name)
        if version is None:
            continue
        for deployment in app.deployments.values():
            for replica in deployment.replicas:
                if replica.node_id:
                    found.setdefault(replica.node_id, Counter())[":".join(version)] += 1
                elif replica.state == "STARTING":
                    unplaced[name] += 1
    return details._get_status(), {node: dict(counts) for node, counts in found.items()}, dict(unplaced)


class Nodes:
    """Ray's nodes, asked through one connection to the head."""

    def __init__(self) -> None:
        self._gcs = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)

    def seen(self, replicas: dict[str, dict[str, int]]) -> dict[str, NodeSeen]:
        """Live nodes by id. `replicas`: as `serve_seen` counts them."""
        draining = self._gcs.get_draining_nodes(timeout=TIMEOUT_S)
        usage = self._gcs.get_all_resource_usage(timeout=TIMEOUT_S).resource_usage_data.batch
        available = {data.node_id.hex(): dict(data.resources_available) for data in usage}
        return {
            node["NodeID"]: _seen(
                node,
                replicas.get(node["NodeID"], {}),
                available.get(node["NodeID"], {}),
                node["NodeID"] in draining,
            )
            for node in ray.nodes()
            if node["Alive"]
        }

    def drain(self, node_id: str) -> str:
        """Have Ray place nothing new on a node and end it once it is idle; Serve then moves its replicas away.

        Returns why Ray refuses or could not be asked, "" if it agrees.
        """
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        no_deadline = 0
        try:  # the node itself is asked: one that has just died does not answer
            accepted, why = self._gcs.drain_node(node_id, reason, "prism drain", no_deadline, timeout=TIMEOUT_S)
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:300]
        return "" if accepted else str(why or "Ray gives no reason")


def _seen(node: dict[str, Any], replicas: dict[str, int], available: dict[str, float], draining: bool) -> NodeSeen:
    labels = node.get("Labels") or {}
    total = {
        name: value
        for name, value in node["Resources"].items()
        if name in _SHOWN or not (name.startswith(("node:", "accelerator_type:")) or name == "object_store_memory")
    }
    port = labels.get(DOOR_LABEL, "")
    return NodeSeen(
        id=node["NodeID"],
        address=node["NodeManagerAddress"],
        name=node["NodeManagerHostname"],
        head=_HEAD in node["Resources"],
        door_port=int(port) if port.isdecimal() else 0,
        idle_gateway=labels.get(GATEWAY_LABEL) != WITH_REPLICAS,
        draining=draining,
        replicas=replicas,
        total=total,
        available={name: available.get(name, 0.0) for name in total} if available else total,
        labels={name: value for name, value in labels.items() if name not in (DOOR_LABEL, GATEWAY_LABEL)},
    )
