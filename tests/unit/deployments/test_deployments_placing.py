import pytest

from cluster.documents import DeploySettings, VersionRecord, VersionStatus
from cluster.policy.nodes import NodeSeen
from cluster.policy.placement import Demand
from cluster.tensors import Signature, TensorSpec
from deployments import placing
from deployments.applications import accelerator_of, actor_options, threads_of
from deployments.placing import Placing

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), True, 8)


def record(**settings):
    return VersionRecord("1", "/a", "d", SIGNATURE, "onnx", "fp32", 10, 1.0, deploy=DeploySettings(**settings))


def node(id, gpus=0.0, draining=False, labels=None):
    total = {"CPU": 4.0, "GPU": gpus, "memory": float(8 << 30)}
    return NodeSeen(id, "127.0.0.1", id, draining=draining, total=total, available=total, labels=labels or {})


def test_ray_is_told_what_is_needed_and_nothing_else():
    assert actor_options(Demand(2)) == {"num_cpus": 2}
    full = Demand(1, 0.25, 1 << 30, {"ray.io/accelerator-type": "A100"})
    assert actor_options(full) == {
        "num_cpus": 1,
        "num_gpus": 0.25,
        "memory": 1 << 30,
        "label_selector": {"ray.io/accelerator-type": "A100"},
    }


@pytest.mark.parametrize(("cpus", "threads"), [(0, 1), (0.5, 1), (1, 1), (2.5, 2), (8, 8)])
def test_a_replica_computes_with_the_cpus_it_was_given(cpus, threads):
    assert threads_of(Demand(cpus)) == threads


def test_the_cpu_stands_in_for_a_gpu_only_where_that_was_allowed():
    assert accelerator_of(Demand(1, 0.5), cpu_fallback=False) == "gpu"
    assert accelerator_of(Demand(1, 0.5), cpu_fallback=True) == "auto"
    assert accelerator_of(Demand(1), cpu_fallback=True) == "cpu"


@pytest.mark.parametrize(("gpus", "usable", "taken"), [(0, True, 0), (1, False, 0), (1, True, 1)])
def test_auto_takes_a_gpu_where_there_is_one_that_the_runtime_can_use(monkeypatch, gpus, usable, taken):
    monkeypatch.setattr(placing, "can_use_gpu", lambda _: usable)
    place = Placing()
    place.look([node("a"), node("b", gpus)], {}, 0.0)
    assert place.demand(record(), None).gpus == taken


def test_a_node_that_drains_takes_nothing():
    place = Placing()
    place.look([node("a"), node("b", 1, draining=True)], {"model:m:1": 1}, 0.0)
    place.look([node("a"), node("b", 1, draining=True)], {"model:m:1": 1}, 5.0)
    demand = place.demand(record(accelerator="gpu"), None)
    status = place.explain("model:m:1", VersionStatus("1", "LOADING"), demand, 5.0)
    assert (status.pending, status.reason) == (1, "1 replica waits: no node has 1 GPU: there is none")


def test_a_selected_node_type_is_waited_for():
    place = Placing()
    for now_s in (0.0, 5.0):
        place.look([node("a", labels={"ray.io/accelerator-type": "T4"})], {"model:m:1": 2}, now_s)
    demand = place.demand(record(on={"ray.io/accelerator-type": "A100"}), None)
    status = place.explain("model:m:1", VersionStatus("1", "READY", replicas=1), demand, 5.0)
    assert status.reason == "2 replicas wait: no node has accelerator-type=A100 (accelerator-type: T4)"


def test_what_no_node_could_take_even_if_it_were_empty_is_told_apart():
    places = Placing()
    places.look([node("a", labels={"zone": "x"}), node("b", draining=True, labels={"zone": "y"})], {}, 0.0)
    demands = {
        "fits": Demand(4.0, on={"zone": "x"}),
        "too large": Demand(5.0),
        "on a node that drains": Demand(1.0, on={"zone": "y"}),
    }
    assert list(places.possible(demands)) == ["fits"]
