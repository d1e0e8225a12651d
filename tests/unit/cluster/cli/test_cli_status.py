import json

import pytest
from click.testing import CliRunner

from cluster import operations
from cluster.artifacts_store import ArtifactStore
from cluster.cli import status as status_module
from cluster.cli.gateways import addresses
from cluster.cli.main import cli
from cluster.cli.session import Session
from cluster.cli.watch import show_again
from cluster.documents import VersionStatus
from cluster.names import Target
from cluster.nodes import NodeReport
from cluster.settings import Boot, Settings
from cluster.store.memory import MemoryStore
from onnx_models import mlp_artifact


def boot(path, node_ip=""):
    return Boot(
        str(path), "", "", "redis://h/0", str(path / "a"), "", "admin", "wire", 8000, 2, Settings(), node_ip=node_ip
    )


@pytest.fixture
def session(tmp_path):
    """`m:1` is deployed; two of four replicas answer, one waits for a node."""
    store, artifacts = MemoryStore(), ArtifactStore(str(tmp_path / "a"), tmp_path / "cache")
    operations.publish(store, artifacts, "m", mlp_artifact(tmp_path / "m"), by="ada")
    operations.deploy(store, Target("m", version="1"), by="ada")
    waits = "1 replica waits: no node has 4 CPUs: the largest has 2"
    status = VersionStatus("1", "READY", waits, 2, 4, True, "d", pending=1, accelerator="cpu")
    store.report("m", {"1": status})
    return Session(boot(tmp_path), store, artifacts, "ada")


@pytest.fixture
def gateways(monkeypatch):
    """What two gateways say, by look; each look has counted a hundred requests more."""
    looks = []

    def overviews(where):
        looks.append(where)
        n = len(looks)
        counts = {"status": {"200": 100 * n, "429": n}, "request_buckets": [0, 100 * n, 0], "batches": 10 * n}
        start = {"replica": "r1", "steps": {"process": 1.0, "load": 0.5}, "ready_s": 5.0, "seen_after_s": 0.2}
        version = {"version": "1", "counts": {**counts, "batch_rows": 80.0 * n}, "waiting_rows": 3, "starts": [start]}
        models = [{"name": "m", "versions": [version]}]
        return [
            {"gateway": name, "at_s": 1000.0 + n, "bounds_s": [0.001, 0.002], "models": models} for name in ("a", "b")
        ]

    monkeypatch.setattr(status_module, "overviews", overviews)
    monkeypatch.setattr(status_module.time, "time", lambda: 1000.0 + len(looks))
    return looks


def run(session, *arguments):
    done = CliRunner().invoke(cli, ["status", *arguments], obj=session)
    assert done.exit_code == 0, done.output
    return done.output


def test_status_says_how_many_replicas_answer_start_and_wait_and_why(session, gateways):
    text = run(session)
    assert "2/4 (1 starting, 1 pending)" in text
    assert "1 replica waits: no node has 4 CPUs: the largest has 2" in text
    assert "onnx fp32 on cpu" in text
    assert ":1 started in 1.5 s: process 1.00, load 0.50; in a gateway's list 0.20 s later" in text


def test_status_as_json_has_the_same_facts(session, gateways):
    (model,) = json.loads(run(session, "--json"))["models"]
    (version,) = model["versions"]
    assert (version["replicas"], version["starting"], version["pending"]) == (2, 1, 1)
    assert version["starts"][0]["steps"] == {"process": 1.0, "load": 0.5}
    assert "live" not in version


def test_watching_as_json_prints_one_value_a_line_with_rates_over_all_gateways(session, gateways, monkeypatch):
    looks = []

    def pause(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(status_module, "show_again", lambda *given: show_again(*given, pause=pause))
    lines = [json.loads(line) for line in run(session, "--watch", "--json").splitlines()]
    assert len(lines) == 3 and looks == [1.0, 1.0, 1.0]
    rates = [line["models"][0]["versions"][0]["live"] for line in lines]
    assert rates[0]["requests_per_s"] == 0
    assert rates[1]["requests_per_s"] == pytest.approx(202) and rates[1]["errors_per_s"] == pytest.approx(2)
    assert rates[1]["batch_rows"] == 8 and 0.001 < rates[1]["p99_s"] <= 0.002
    assert rates[1]["waiting_rows"] == 6


def test_watching_shows_rates_beside_each_version_and_ends_on_ctrl_c(session, gateways, monkeypatch):
    waits = iter([None, KeyboardInterrupt])

    def pause(seconds):
        if next(waits):
            raise KeyboardInterrupt

    monkeypatch.setattr(status_module, "show_again", lambda *given: show_again(*given, pause=pause))
    text = run(session, "m", "--watch")
    assert "req/s" in text and "202.0" in text and "8.0" in text


def test_every_gateway_is_asked_once(tmp_path):
    nodes = [
        NodeReport("h", "10.0.0.1", "head", head=True, door_port=8000, gateway="RUNNING"),
        NodeReport("w", "10.0.0.2", "worker", door_port=9000, gateway="RUNNING"),
        NodeReport("x", "10.0.0.3", "without", door_port=9000),
    ]
    assert addresses(boot(tmp_path, "10.0.0.1"), nodes) == [("127.0.0.1", 8000), ("10.0.0.2", 9000)]
