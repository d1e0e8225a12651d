from cluster.documents import DeploySettings, ModelDocument, VersionRecord, VersionStatus
from cluster.policy.nodes import NodeSeen
from cluster.policy.placement import Demand
from cluster.policy.reconcile import Applied, Seen, Wanted, plan
from cluster.settings import LimitSettings, RaySettings, Settings
from cluster.splits import TrafficSplit
from cluster.tensors import Signature, TensorSpec
from deployments.notes import Note
from deployments.sharing import capacity_of, claims_of, granted, with_grants, with_scaling

NOW_S = 1000.0
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), True, 8)


def record(version, **deploy):
    return VersionRecord(version, "file:///a", "d", SIGNATURE, "onnx", "fp32", 1, 0.0, deploy=DeploySettings(**deploy))


def document(*records, split=None, labels=None):
    return ModelDocument(
        "m", {r.version: r for r in records}, split=TrafficSplit.parse(split) if split else None, labels=labels or {}
    )


def claims(found, notes=None, seen=None):
    records = {f"model:m:{version}": r for version, r in found.versions.items()}
    demands = {name: Demand(cpus=1.0) for name in records}
    return claims_of({"m": found}, records, demands, notes or {}, seen or {}, NOW_S)


def test_a_version_wants_what_its_policy_said_last():
    found = claims(document(record("1", max_replicas=9)), {"model:m:1": Note(7, at_s=NOW_S - 5)})
    assert found["model:m:1"].wants == 7 and found["model:m:1"].most == 9


def test_an_old_word_does_not_count():
    seen = {"model:m:1": Seen("RUNNING", running=2, target=3)}
    found = claims(document(record("1", max_replicas=9)), {"model:m:1": Note(7, at_s=NOW_S - 500)}, seen)
    assert found["model:m:1"].wants == 3


def test_others_come_after_the_version_with_most_traffic_or_the_label_stable():
    split = claims(document(record("1"), record("2"), split="1=90,2=10"))
    assert (split["model:m:1"].after, split["model:m:2"].after) == ("", "model:m:1")
    labelled = claims(document(record("1"), record("2"), split="1=90,2=10", labels={"stable": "2"}))
    assert (labelled["model:m:1"].after, labelled["model:m:2"].after) == ("model:m:2", "")


def test_a_version_that_no_node_can_take_claims_nothing():
    found = document(record("1"), record("2"))
    records = {f"model:m:{version}": r for version, r in found.versions.items()}
    assert list(claims_of({"m": found}, records, {"model:m:2": Demand()}, {}, {}, NOW_S)) == ["model:m:2"]


def node(**changes):
    given = {"total": {"CPU": 4.0, "memory": 8e9}}
    return NodeSeen("n", "127.0.0.1", "n", **{**given, **changes})


def test_a_cluster_has_what_its_nodes_have_or_what_the_operator_allows():
    assert capacity_of([node(), node()], Settings())["CPU"] == 8.0
    assert capacity_of([node(), node(draining=True)], Settings())["CPU"] == 4.0
    assert capacity_of([node()], Settings(limits=LimitSettings(cpus=2)))["CPU"] == 2.0
    assert capacity_of([], Settings()) == {}


def test_a_limit_above_what_the_nodes_have_adds_nothing():
    found = capacity_of([node()], Settings(limits=LimitSettings(cpus=64, gpus=2)))
    assert found["CPU"] == 4.0 and found["GPU"] == 0.0


def test_a_cluster_that_grows_is_bounded_by_what_the_operator_allows_only():
    for ray in (RaySettings(autoscaling_config="cluster.yaml"), RaySettings(grows=True)):
        found = capacity_of([node()], Settings(ray=ray, limits=LimitSettings(gpus=3)))
        assert found["CPU"] > 1e6 and found["GPU"] == 3


def test_a_bound_runs_the_application_again_and_is_not_part_of_what_was_asked_for():
    found = document(record("1", max_replicas=9), record("2", max_replicas=9))
    notes = {f"model:m:{v}": Note(6, at_s=NOW_S) for v in "12"}
    wanted = {f"model:m:{v}": Wanted("m", v, "d", f"spec{v}") for v in "12"}
    grants = granted(wanted, claims(found, notes), {"CPU": 8.0, "memory": 1e12})
    assert sum(grants.values()) == 8
    bounded = with_grants(wanted, grants)
    memory = {name: Applied(want.spec, 0.0) for name, want in wanted.items()}
    seen = {name: Seen("RUNNING", running=1, target=1) for name in wanted}
    changed = plan(bounded, seen, memory, {}, 100.0)
    assert set(changed.run) == set(grants)
    later = plan(bounded, seen, changed.memory, {}, 200.0)
    assert later.run == () and {s.spec for s in later.statuses.values()} == {"spec1", "spec2"}


def test_enough_for_all_changes_nothing():
    found = document(record("1", max_replicas=9), record("2", max_replicas=9))
    notes = {f"model:m:{v}": Note(2, at_s=NOW_S) for v in "12"}
    wanted = {f"model:m:{v}": Wanted("m", v, "d", f"spec{v}") for v in "12"}
    assert granted(wanted, claims(found, notes), {"CPU": 8.0, "memory": 1e12}) == {}
    assert with_grants(wanted, {}) == wanted


def test_a_status_says_why_the_number_of_replicas_changed_and_what_holds_it_down():
    status = VersionStatus("1", "READY")
    assert with_scaling(status, None, None).scaling == ""
    assert with_scaling(status, Note(4, "2 -> 4: up: 300 rows/s"), None).scaling == "2 -> 4: up: 300 rows/s"
    free = with_scaling(status, Note(4, "1 -> 2: up"), None)
    assert (free.wants, free.granted) == (4, 0)
    held = with_scaling(free, Note(4, "1 -> 2: up"), 2)
    assert held.scaling.startswith("wants 4 replicas and is granted 2") and held.scaling.endswith("1 -> 2: up")
    assert (held.wants, held.granted) == (4, 2)
