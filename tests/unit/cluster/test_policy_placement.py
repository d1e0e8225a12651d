import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.documents import DeploySettings, VersionRecord, VersionStatus
from cluster.policy.placement import (
    Demand,
    NodeRoom,
    Unplaced,
    demand_of,
    explained,
    reserved_bytes,
    unplaced,
    uses_gpu,
    why_waiting,
)
from cluster.selectors import selects
from cluster.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), True, 8)
GIB = 1 << 30
T4 = {"ray.io/accelerator-type": "T4"}


def record(**settings):
    deploy = DeploySettings(**settings)
    return VersionRecord(
        "1", "/a", "d", SIGNATURE, "onnx", "fp32", 10 << 20, 1.0, memory_bytes=400 << 20, deploy=deploy
    )


def node(cpus=2.0, gpus=0.0, memory=8 * GIB, free=None, labels=None):
    total = {"CPU": cpus, "GPU": gpus, "memory": float(memory)}
    return NodeRoom(total, total if free is None else {**total, **free}, labels or {})


def test_what_fits_somewhere_has_no_reason_to_wait():
    assert why_waiting(Demand(2, 0.5, GIB), [node(), node(gpus=1)]) == ""


@pytest.mark.parametrize(
    ("demand", "nodes", "why"),
    [
        (Demand(4), [node(1), node(2)], "no node has 4 CPUs: the largest has 2"),
        (Demand(1, 1), [node()], "no node has 1 GPU: there is none"),
        (Demand(1, 2), [node(gpus=1)], "no node has 2 GPUs: the largest has 1"),
        (
            Demand(1, 0, 12 * GIB),
            [node()],
            "no node has 12.0 GiB of memory: the largest has 8.0",
        ),
        (Demand(2, 1), [node(2), node(1, gpus=1)], "no single node has 2 CPUs, 1 GPU together"),
        (
            Demand(2),
            [node(free={"CPU": 0.5})],
            "no node has 2 CPUs free: at most 0.5 of 2 CPUs",
        ),
        (
            Demand(1, 0.5),
            [node(gpus=1, free={"GPU": 0})],
            "no node has 0.5 GPUs free: at most 0 of 1 GPU",
        ),
        (
            Demand(1, 1),
            [node(gpus=1, free={"GPU": 0}), node(gpus=1, free={"CPU": 0})],
            "no single node has 1 CPU, 1 GPU free together",
        ),
        (
            Demand(on={"ray.io/accelerator-type": "A100"}),
            [node(labels=T4), node()],
            "no node has accelerator-type=A100 (accelerator-type: T4)",
        ),
        (Demand(on={"zone": "a"}), [node()], "no node has zone=a (zone: no node has this label)"),
        (
            Demand(4, on=T4),
            [node(labels=T4), node(8)],
            "no node with accelerator-type=T4 has 4 CPUs: the largest has 2",
        ),
        (Demand(), [], "the cluster has no nodes"),
    ],
)
def test_the_reason_names_what_is_missing_and_what_there_is(demand, nodes, why):
    assert why_waiting(demand, nodes) == why


amounts = st.floats(0, 8).map(lambda x: round(x, 2))
rooms = st.builds(
    lambda cpus, gpus, memory, share, labels: node(
        cpus, gpus, memory, {"CPU": cpus * share, "GPU": gpus * share, "memory": memory * share}, labels
    ),
    amounts,
    amounts,
    st.integers(0, 8 * GIB),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([{}, T4, {"zone": "a"}]),
)
demands = st.builds(Demand, amounts, amounts, st.integers(0, 8 * GIB), st.sampled_from([{}, T4, {"zone": "!a"}]))


@given(demands, st.lists(rooms, max_size=4))
def test_there_is_a_reason_exactly_when_no_node_has_room(demand, nodes):
    fits = any(
        selects(demand.on, n.labels)
        and n.free["CPU"] >= demand.cpus
        and n.free["GPU"] >= demand.gpus
        and n.free["memory"] >= demand.memory_bytes
        for n in nodes
    )
    assert bool(why_waiting(demand, nodes)) != fits


def test_a_replica_reserves_what_the_profile_measured_with_a_margin():
    assert reserved_bytes(record()) == (256 + 500) << 20
    unmeasured = replace(record(), memory_bytes=0)
    assert reserved_bytes(unmeasured) == (256 + 25) << 20
    assert reserved_bytes(replace(record(), memory_bytes=1)) == 257 << 20


def test_an_operators_figure_wins_over_the_profile():
    assert demand_of(record(memory_bytes=5 * GIB), False).memory_bytes == 5 * GIB
    assert "memory" not in demand_of(record(memory_bytes=0), False).resources()


@pytest.mark.parametrize(
    ("settings", "offered", "gpus"),
    [
        ({}, False, 0),
        ({}, True, 1),
        ({"accelerator": "cpu"}, True, 0),
        ({"accelerator": "gpu"}, False, 1),
        ({"num_gpus": 0.25}, False, 0.25),
        ({"provider": "tensorrt"}, False, 1),
        ({"accelerator": "gpu", "num_gpus": 2}, True, 2),
    ],
)
def test_a_gpu_is_taken_where_one_was_asked_for_or_the_cluster_has_one(settings, offered, gpus):
    wanted = record(**settings)
    assert demand_of(wanted, uses_gpu(wanted, None, offered)).gpus == gpus


def test_a_gpu_node_that_comes_or_goes_moves_no_version():
    on_cpu = VersionStatus("1", "READY", digest="d", accelerator="cpu")
    on_gpu = VersionStatus("1", "LOADING", digest="d", accelerator="gpu")
    assert not uses_gpu(record(), on_cpu, offered=True)
    assert uses_gpu(record(), on_gpu, offered=False)
    assert uses_gpu(record(), replace(on_cpu, state="RETIRED"), offered=True)
    assert uses_gpu(record(), replace(on_cpu, digest="another"), offered=True)
    assert uses_gpu(record(accelerator="gpu"), on_cpu, offered=False)


def test_demands_are_whole_mebibytes():
    assert math.gcd(reserved_bytes(replace(record(), memory_bytes=12345)), 1 << 20) == 1 << 20


LOADING = VersionStatus(
    "1", "LOADING", reason="Deployment 'replica' has 1 replicas that have taken more than 30s to be scheduled."
)


def test_a_replica_that_waits_is_counted_and_says_why_in_place_of_serves_words():
    status = explained(LOADING, Demand(1, 1), Unplaced(1, 0.0), [node()], 5.0)
    assert (status.pending, status.reason) == (1, "1 replica waits: no node has 1 GPU: there is none")
    assert status.accelerator == "gpu" and status.state == "LOADING"


def test_a_version_that_answers_may_have_replicas_that_wait():
    ready = VersionStatus("1", "READY", replicas=2, target_replicas=4)
    full = [node(2, free={"CPU": 0})]
    status = explained(ready, Demand(1), Unplaced(2, 0.0), full, 5.0)
    assert (status.state, status.replicas, status.pending) == ("READY", 2, 2)
    assert status.reason == "2 replicas wait: no node has 1 CPU free: at most 0 of 2 CPUs"


def test_what_was_placed_a_moment_ago_does_not_wait():
    found = unplaced({"a": 1, "b": 0}, {}, 10.0)
    assert found == {"a": Unplaced(1, 10.0)}
    assert explained(LOADING, Demand(9), found["a"], [node()], 11.0).pending == 0
    later = unplaced({"a": 2}, found, 12.5)
    assert explained(LOADING, Demand(9), later["a"], [node()], 12.5).pending == 2


def test_where_there_is_room_nothing_waits():
    assert explained(LOADING, Demand(1), Unplaced(1, 0.0), [node()], 99.0).reason == LOADING.reason


def test_why_a_replica_failed_is_not_hidden_by_the_next_one_that_waits():
    failed = replace(LOADING, reason="EngineFailed: no memory")
    status = explained(failed, Demand(9), Unplaced(1, 0.0), [node()], 5.0)
    assert (status.pending, status.reason) == (1, "EngineFailed: no memory")
