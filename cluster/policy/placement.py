"""What one replica needs of a node, and why no node can take it now.

Pure: the controller reads nodes from Ray and puts the answer into the version's status. Ray decides where a replica
goes; this module only has to agree with it on what fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.documents import VersionRecord, VersionStatus
from cluster.selectors import RAY_PREFIX, selects, shown

MIB = 1 << 20

# Ray's worker process with ONNX Runtime and hardly a model was measured at 170 MiB; what serving adds to the
# profile's figure (received frames, a batch being put together) is bounded by the queue, and small beside a model.
PROCESS_BYTES = 256 * MIB
MARGIN = 1.25

PATIENCE_S = 2.0  # what Ray has just placed is not told at once; a replica waits once it is unplaced for so long
_SERVE_WAITS = "to be scheduled"  # Serve's own words for a replica that no node has taken

_UNITS = {"CPU": ("CPU", "CPUs"), "GPU": ("GPU", "GPUs"), "memory": ("GiB of memory", "GiB of memory")}
_GONE = ("REGISTERED", "DRAINING", "RETIRED")


@dataclass(frozen=True, slots=True)
class Demand:
    """What one replica needs. `on`: label selectors."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0
    on: Mapping[str, str] = field(default_factory=dict)

    def resources(self) -> dict[str, float]:
        """By Ray's names, without those of which nothing is needed."""
        needs = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes)}
        return {name: amount for name, amount in needs.items() if amount}


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """A live node: what it has and what of that is free, by Ray's names of resources."""

    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


def uses_gpu(record: VersionRecord, before: VersionStatus | None, offered: bool) -> bool:
    """Whether replicas of `record`, whose `deploy` is set, are placed on GPUs.

    "auto" is decided when the version is deployed and stays: a GPU node that comes or goes must not replace replicas.

    Args:
        before: What was reported of the version last.
        offered: The cluster has a GPU that the version's runtime can use.
    """
    deploy = record.deploy
    assert deploy is not None
    if deploy.accelerator != "auto":
        return deploy.accelerator == "gpu"
    if deploy.num_gpus or deploy.provider != "auto":
        return True
    if before is not None and before.digest == record.digest and before.state not in _GONE and before.accelerator:
        return before.accelerator == "gpu"
    return offered


def demand_of(record: VersionRecord, gpu: bool) -> Demand:
    """What one replica of `record`, whose `deploy` is set, needs; `gpu` as `uses_gpu` says."""
    deploy = record.deploy
    assert deploy is not None
    return Demand(
        cpus=deploy.num_cpus,
        gpus=(deploy.num_gpus or 1.0) if gpu else 0.0,
        memory_bytes=reserved_bytes(record) if deploy.memory_bytes is None else deploy.memory_bytes,
        on=deploy.on,
    )


def reserved_bytes(record: VersionRecord) -> int:
    """Memory to reserve for one replica, in whole MiB: the process, and the model as profiled with a margin.

    A model that was not profiled is taken to need twice its files: the weights, and the graph made of them.
    """
    model = record.memory_bytes or 2 * record.size_bytes
    return -(-int(PROCESS_BYTES + MARGIN * model) // MIB) * MIB


def why_waiting(demand: Demand, nodes: Sequence[NodeRoom]) -> str:
    """One line that says why no node takes a replica now; "" if one could.

    What could never fit is told apart from what is only taken at the moment.
    """
    if not nodes:
        return "the cluster has no nodes"
    if any(_fits(demand, node.free) and selects(demand.on, node.labels) for node in nodes):
        return ""
    chosen = [node for node in nodes if selects(demand.on, node.labels)]
    if not chosen:
        return f"no node has {shown(demand.on)}{_labels_there(demand, nodes)}"
    where = f" with {shown(demand.on)}" if demand.on else ""
    needs = demand.resources()
    for name, amount in needs.items():
        most = max(node.total.get(name, 0.0) for node in chosen)
        if most < amount:
            has = f"the largest has {_figure(name, most)}" if most else "there is none"
            return f"no node{where} has {_amount(name, amount)}: {has}"
    whole = [node for node in chosen if _fits(demand, node.total)]
    wanted = _together(needs)
    if not whole:
        return f"no single node{where} has {wanted} together"
    for name, amount in needs.items():
        most = max(node.free.get(name, 0.0) for node in whole)
        if most < amount:
            total = max(node.total.get(name, 0.0) for node in whole)
            found = f"at most {_figure(name, most)} of {_amount(name, total)}"
            return f"no node{where} has {_amount(name, amount)} free: {found}"
    return f"no single node{where} has {wanted} free together"


def fits_some(demand: Demand, nodes: Sequence[NodeRoom]) -> bool:
    """Whether one of the nodes could take a replica if nothing else ran there."""
    return any(_fits(demand, node.total) and selects(demand.on, node.labels) for node in nodes)


@dataclass(frozen=True, slots=True)
class Unplaced:
    """Replicas of one version that no node has taken yet, and since when some were (any monotonic clock)."""

    count: int
    since_s: float


def unplaced(counts: Mapping[str, int], before: Mapping[str, Unplaced], now_s: float) -> dict[str, Unplaced]:
    """What is unplaced by application, from Serve's counts now and what was so before."""
    return {
        name: Unplaced(count, before[name].since_s if name in before else now_s)
        for name, count in counts.items()
        if count
    }


def explained(
    status: VersionStatus, demand: Demand, found: Unplaced | None, nodes: Sequence[NodeRoom], now_s: float
) -> VersionStatus:
    """`status` with what its replicas are placed for, how many of them wait for a node, and why."""
    status = replace(status, accelerator="gpu" if demand.gpus else "cpu")
    if found is None or now_s - found.since_s < PATIENCE_S:
        return status
    why = why_waiting(demand, nodes)
    if not why:
        return status
    waits = "1 replica waits" if found.count == 1 else f"{found.count} replicas wait"
    told = status.reason and _SERVE_WAITS not in status.reason  # why an earlier replica failed is worth more
    return replace(status, pending=found.count, reason=status.reason if told else f"{waits}: {why}")


def _fits(demand: Demand, room: Mapping[str, float]) -> bool:
    return all(room.get(name, 0.0) >= amount - 1e-9 for name, amount in demand.resources().items())


def _labels_there(demand: Demand, nodes: Sequence[NodeRoom]) -> str:
    """What nodes have for the labels that were asked for."""
    parts = []
    for label in sorted(demand.on):
        there = sorted({node.labels[label] for node in nodes if label in node.labels})
        parts.append(f"{label.removeprefix(RAY_PREFIX)}: {', '.join(there) or 'no node has this label'}")
    return f" ({'; '.join(parts)})"


def _together(needs: Mapping[str, float]) -> str:
    return ", ".join(_amount(name, amount) for name, amount in needs.items())


def _figure(name: str, amount: float) -> str:
    return f"{amount / (1 << 30):.1f}" if name == "memory" else f"{amount:g}"


def _amount(name: str, amount: float) -> str:
    one, many = _UNITS[name]
    return f"{_figure(name, amount)} {one if amount == 1 else many}"
