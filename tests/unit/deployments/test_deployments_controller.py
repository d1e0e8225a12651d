import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cluster.documents import DeploySettings, ModelDocument, VersionRecord
from cluster.nodes import DrainRequest, NodeReports
from cluster.policy.nodes import NodeSeen
from cluster.policy.scale import Memory
from cluster.settings import Settings
from cluster.tensors import Signature, TensorSpec
from deployments import applications as apps
from deployments.controller import Reconciler, applications_seen, wanted_applications
from deployments.notes import recalled
from deployments.scaling import ServeScale, load_from, policy_arguments

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), True, 8)


def record(version, deploy=DeploySettings(), digest="d"):
    return VersionRecord(version, "/a", digest, SIGNATURE, "onnx", "fp32", 10, 1.0, deploy=deploy)


@pytest.mark.parametrize(("model", "version"), [("m", "1"), ("a.b-c", "12"), ("a-1", "2")])
def test_an_application_name_tells_its_model_and_version(model, version):
    assert apps.parse_app_name(apps.app_name(model, version)) == (model, version)


def test_other_applications_are_not_model_versions():
    for name in (apps.CONTROLLER_APP, apps.GATEWAY_APP + "abc", "model:", "model:x"):
        assert apps.parse_app_name(name) is None


def test_only_deployed_versions_are_wanted_and_only_their_own_changes_change_them():
    document = ModelDocument("m", {"1": record("1"), "2": record("2", None)}, labels={"old": "1"}, revision=4)
    wanted, records = wanted_applications({"m": document})
    assert list(wanted) == ["model:m:1"] and list(records) == ["model:m:1"]
    moved = ModelDocument("m", {"1": record("1"), "2": record("2", None)}, revision=5)
    assert wanted_applications({"m": moved})[0] == wanted
    scaled = ModelDocument("m", {"1": record("1", DeploySettings(max_replicas=3))})
    assert wanted_applications({"m": scaled})[0] != wanted


def test_what_serve_reports_is_read():
    deployment = SimpleNamespace(replica_states={"RUNNING": 2, "STARTING": 1, "STOPPING": 1}, message="why")
    status = SimpleNamespace(
        applications={
            "model:m:1": SimpleNamespace(status="DEPLOYING", deployments={"replica": deployment}, message=""),
            apps.GATEWAY_APP + "n": SimpleNamespace(status="RUNNING", deployments={}, message=""),
        }
    )
    seen, gateways = applications_seen(status)
    assert gateways == {"n": "RUNNING"}
    assert (seen["model:m:1"].running, seen["model:m:1"].target, seen["model:m:1"].message) == (2, 3, "why")


@pytest.fixture(autouse=True)
def fresh_memories(monkeypatch):
    monkeypatch.setattr("deployments.notes._memories", {})


def context(**changes):
    metrics = {
        "rows_per_s": {"a": 100.0, "b": 50.0, "gone": 999.0},
        "done_per_s": {"a": 100.0, "b": 50.0},
        "queue_rows": {"a": 4.0},
        "busy_share": {"a": 0.5, "b": 0.3},
        "capacity_rows_per_s": {"a": 80.0, "b": 80.0},
        "backlog_rows": {"a": 30.0, "b": 40.0},
        "start_s": {"a": 2.0, "b": 3.0},
    }
    given = {
        "aggregated_metrics": metrics,
        "running_replicas": ["a", "b"],
        "target_num_replicas": 2,
        "total_num_requests": 0,
        "app_name": "model:m:1",
    }
    return SimpleNamespace(**{**given, **changes})


def test_load_is_summed_over_running_replicas_only():
    load = load_from(context())
    assert (load.replicas, load.rows_per_s, load.queue_rows) == (2, 150.0, 4.0)
    assert load.backlog_rows == 40.0  # every gateway tells every replica all of it
    assert load.start_s == 3.0
    assert load.busy_share == pytest.approx(0.4) and load.capacity_rows_per_s == 80.0
    assert not load.wanted and load_from(context(total_num_requests=1)).wanted


def test_serves_policy_scales_with_the_settings_of_the_version():
    scale = ServeScale(**policy_arguments(DeploySettings(min_replicas=1, max_replicas=5)))
    replicas, state = scale(context())
    assert replicas == 3 and "rows/s" in state["reason"]  # 150 rows/s at 70 % of 80 rows/s each


def test_a_grant_bounds_what_is_asked_for_and_not_what_is_wanted(monkeypatch):
    notes = []
    monkeypatch.setattr("deployments.scaling.write_note", lambda app, note: notes.append((app, note)))
    monkeypatch.setattr("deployments.scaling.read_notes", lambda apps: {})
    scale = ServeScale(**policy_arguments(DeploySettings(min_replicas=1, max_replicas=5), granted=1))
    assert scale(context())[0] == 1
    [(app, note)] = notes
    assert (app, note.wants) == ("model:m:1", 3)
    assert note.changed == "2 -> 1: granted 1 of the 3 it wants, others need the rest"
    scale(context(target_num_replicas=1))
    assert len(notes) == 1  # nothing new, and not long ago


def test_what_is_wanted_outlasts_a_quiet_moment_and_a_new_bound(monkeypatch):
    notes = {}
    monkeypatch.setattr("deployments.scaling.write_note", notes.__setitem__)
    monkeypatch.setattr(
        "deployments.scaling.read_notes", lambda apps: {app: notes[app] for app in apps if app in notes}
    )
    arguments = policy_arguments(DeploySettings(min_replicas=1, max_replicas=5), granted=2)
    quiet = context(aggregated_metrics={**context().aggregated_metrics, "rows_per_s": {"a": 10.0}, "backlog_rows": {}})
    scale = ServeScale(**arguments)
    assert scale(context())[0] == 2 and notes["model:m:1"].wants == 3
    assert scale(quiet)[0] == 2 and notes["model:m:1"].wants == 3
    wider = ServeScale(**policy_arguments(DeploySettings(min_replicas=1, max_replicas=5), granted=4))
    assert wider(quiet)[0] == 3 and notes["model:m:1"].changed == "2 -> 3: granted all 3 it wants"
    assert ServeScale(**arguments)(quiet)[0] == 2 and notes["model:m:1"].wants == 3
    assert (
        ServeScale(**policy_arguments(DeploySettings(max_replicas=5)))(quiet)[0] == 2
    )  # unbound, it has what it wants


def test_what_was_learnt_of_bursts_outlasts_a_new_bound_but_not_a_long_absence(monkeypatch):
    monkeypatch.setattr("deployments.scaling.write_note", lambda app, note: None)
    monkeypatch.setattr("deployments.scaling.read_notes", lambda apps: {})
    now = [1000.0]
    monkeypatch.setattr("deployments.scaling.time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    settings = DeploySettings(min_replicas=1, max_replicas=5, down_after_s=10)
    calm = {**context().aggregated_metrics, "rows_per_s": {"a": 9.0}, "queue_rows": {}, "backlog_rows": {}}
    quiet = context(aggregated_metrics=calm, target_num_replicas=3)
    ServeScale(**policy_arguments(settings))(context())  # needs 3
    for granted in (0, 3, 0, 4):  # a new object each time, within the hold time
        now[0] += 2
        assert ServeScale(**policy_arguments(settings, granted))(quiet)[0] == 3
    now[0] += 8
    assert ServeScale(**policy_arguments(settings))(quiet)[0] < 3
    assert recalled("model:m:1", now[0]).lowered == (now[0], 3)
    assert recalled("model:m:1", now[0] + 60) == Memory()


def test_a_version_that_serve_has_woken_says_so(monkeypatch):
    notes = {}
    monkeypatch.setattr("deployments.scaling.write_note", notes.__setitem__)
    scale = ServeScale(**policy_arguments(DeploySettings(min_replicas=0, max_replicas=5)))
    assert scale(context(target_num_replicas=0, running_replicas=[]))[0] == 0
    assert notes["model:m:1"].changed == ""
    assert scale(context(target_num_replicas=1, running_replicas=[]))[0] == 1
    assert notes["model:m:1"].changed == "0 -> 1: up: requests waited for a version at zero"
    scale(context(target_num_replicas=1))
    assert notes["model:m:1"].changed.startswith("1 -> 3: up: 150 rows/s")


def test_before_any_report_the_target_is_kept():
    scale = ServeScale(**policy_arguments(DeploySettings(min_replicas=1, max_replicas=5)))
    assert scale(context(aggregated_metrics={}))[0] == 2


def test_a_gateway_that_cannot_be_run_keeps_nobody_else_waiting(monkeypatch):
    reported = []
    reconciler = object.__new__(Reconciler)
    reconciler._settings = Settings()
    reconciler._nodes = SimpleNamespace(seen=lambda replicas: {"n": NodeSeen("n", "10.0.0.2", "beta", door_port=1)})
    wishes = SimpleNamespace(drains=dict, report=reported.append)
    reconciler._store = SimpleNamespace(nodes=wishes)
    reconciler._node_memory, reconciler._nodes_reported, reconciler._refusals = {}, NodeReports(), {}
    asked = []

    def fail(name, application):
        asked.append(name)
        raise RuntimeError("Serve does not take it")

    monkeypatch.setattr(reconciler.__class__, "_run", staticmethod(fail))
    assert reconciler._look_after_nodes({}, {}) is False
    assert asked == [apps.GATEWAY_APP + "n"]
    assert [node.id for node in reported[0].nodes] == ["n"]


def test_a_drain_that_is_refused_is_told_once_and_not_asked_for_all_the_time(caplog):
    reported, asked = [], []
    reconciler = object.__new__(Reconciler)
    reconciler._settings = Settings()
    nodes = {"n": NodeSeen("n", "10.0.0.2", "beta")}

    def drain(node):
        asked.append(node)
        return "the raylet does not answer"

    reconciler._nodes = SimpleNamespace(seen=lambda replicas: nodes, drain=drain)
    wishes = SimpleNamespace(drains=lambda: {"n": DrainRequest("ada", time.time())}, report=reported.append)
    reconciler._store = SimpleNamespace(nodes=wishes)
    reconciler._node_memory, reconciler._nodes_reported, reconciler._refusals = {}, NodeReports(), {}
    with caplog.at_level("INFO", "ray.serve"):
        for _ in range(5):
            reconciler._look_after_nodes({}, {})
        reconciler._refusals["n"] = replace(reconciler._refusals["n"], again_at_s=0.0)
        reconciler._look_after_nodes({}, {})
    assert asked == ["n", "n"] and reconciler._refusals["n"].times == 2
    assert len([line for line in caplog.messages if "refused" in line]) == 1
    assert [report.nodes[0].reason for report in reported] == ["cannot be drained: the raylet does not answer"]
    nodes["n"] = replace(nodes["n"], draining=True)
    reconciler._look_after_nodes({}, {})
    assert reconciler._refusals == {} and reported[-1].nodes[0].reason == ""


def test_nothing_is_deployed_before_the_nodes_were_seen(monkeypatch):
    """A version without --accelerator is placed on GPUs or on CPUs for good when it is deployed."""

    def unreachable(replicas):
        raise RuntimeError("the head is busy")

    monkeypatch.setattr("deployments.controller.serve_seen", lambda: (SimpleNamespace(applications={}), {}, {}))
    document = ModelDocument("m", {"1": record("1")})
    reconciler = object.__new__(Reconciler)
    reconciler._nodes = SimpleNamespace(seen=unreachable)
    reconciler._follower = SimpleNamespace(
        poll=lambda: SimpleNamespace(adopted=False), up=True, documents={"m": document}
    )
    reconciler._live, reconciler._memory, reconciler._reported = {}, {}, {}
    reconciler._placing = None  # what is not asked cannot decide
    reconciler.step()
    assert not reconciler.settled and reconciler._memory == {} and reconciler._reported == {}
