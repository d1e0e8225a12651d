"""Load tests of a real Prism, as an operator runs them: mixed models, kills under load, plain Ray Serve beside it."""

import json
import socket
from urllib.parse import urlsplit

import psutil
import pytest

from loadtest.result import LoadResult
from onnx_models import mlp_artifact, two_input_artifact

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def models(prism, tmp_path_factory):
    """`load` with two replicas, and `load-two`, which takes two inputs, one with a free dimension."""
    folder = tmp_path_factory.mktemp("models")
    for name, artifact in (("load", mlp_artifact(folder / "a")), ("load-two", two_input_artifact(folder / "b"))):
        prism.cli("publish", name, str(artifact.path))
    prism.cli("deploy", "load:1", "--cpus", "0.1", "--min", "2", "--max", "2")
    prism.cli("deploy", "load-two:1", "--cpus", "0.1")
    yield
    for name in ("load", "load-two"):
        prism.cli("undeploy", f"{name}:1", "--force")


def load(prism, out, *arguments):
    """The result of `prism loadtest ARGUMENTS`; a busy machine may make it invalid, but nothing else may go wrong."""
    done = prism.cli("loadtest", *arguments, "--out", str(out), check=False, timeout_s=500)
    assert done.returncode in (0, 1, 2) and "error:" not in done.stderr, done.stdout + done.stderr
    return done


def nothing_failed(result):
    counts = result.total.counts
    assert counts.failed == 0 and counts.answered > 0, counts
    assert counts.offered == counts.answered + counts.dropped
    assert not [reason for reason in result.verdict.reasons if "event" in reason]


def test_mixed_models_are_loaded_together_and_reported_apart(prism, models, tmp_path):
    load(prism, tmp_path, "--scenario", "mixed", "--duration", "4", "--model", "load,load-two,load@stable")
    result = LoadResult.read(tmp_path / "result.json")
    nothing_failed(result)
    assert [target.name for target in result.targets] == ["load", "load-two", "load@stable"]
    assert sum(target.counts.offered for target in result.targets) == result.total.counts.offered
    assert set(result.total.counts.versions) == {"load:1", "load-two:1"}
    assert result.load.targets[1]["sample"].endswith("sample.npz")
    assert result.about_server["models"]["load:1"]["replicas"] == 2
    assert "load-two" in (tmp_path / "report.html").read_text()


def test_a_replica_that_is_killed_under_load_costs_no_request(prism, models, tmp_path):
    prism.until(lambda: len(prism.replica_pids("load")) == 2)
    before = prism.replica_pids("load")
    load(prism, tmp_path, "--scenario", "replica-killed", "--duration", "8", "--model", "load")
    result = LoadResult.read(tmp_path / "result.json")
    nothing_failed(result)
    (event,) = result.events
    killed = event.detail.rpartition(" ")[2]
    assert event.detail.startswith("killed a replica of load:1") and killed in before
    prism.until(lambda: len(prism.replica_pids("load")) == 2 and killed not in prism.replica_pids("load"))
    assert "kill-replica" in (tmp_path / "report.html").read_text()


def test_a_store_that_is_killed_under_load_costs_no_request_and_comes_back(prism, models, tmp_path):
    load(prism, tmp_path, "--scenario", "store-killed", "--duration", "6", "--model", "load")
    result = LoadResult.read(tmp_path / "result.json")
    nothing_failed(result)
    assert [event.name for event in result.events] == ["kill-store"]
    prism.until(lambda: prism.cli("scale", "load:1", "--max", "3", check=False).returncode == 0, 30)


@pytest.mark.timeout(600)
def test_the_same_load_on_plain_ray_serve_is_compared_and_nothing_is_left_behind(prism, models, tmp_path):
    done = load(
        prism,
        tmp_path,
        *("--scenario", "smoke", "--duration", "2", "--rate", "20", "--model", "load"),
        *("--baseline", "ray-serve", "--json"),
    )
    prism_result = LoadResult.read(tmp_path / "prism" / "result.json")
    baseline = LoadResult.read(tmp_path / "ray-serve" / "result.json")
    for result in (prism_result, baseline):
        nothing_failed(result)
    assert prism_result.total.counts.offered == baseline.total.counts.offered
    assert prism_result.host != baseline.host and baseline.about_server["replicas"] == 2
    assert prism_result.total.counts.versions == {"1": prism_result.total.counts.answered}
    measures = {item["measure"] for item in json.loads(done.stdout)["comparison"]["differences"]}
    assert {"p50", "p99", "goodput/s"} <= measures
    assert "<svg" in (tmp_path / "comparison.html").read_text()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", urlsplit(baseline.host).port), timeout=2)
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if "bench.servers.ray_serve" in line and str(prism.home) in line]
