"""From an artifact to answers: publish, deploy, infer, split, roll back, break, restart."""

from __future__ import annotations

import json
import time
import urllib.request

import numpy as np
import onnxruntime
import pytest

from onnx_models import mlp_artifact, slow_artifact, text_artifact, two_input_artifact
from open_loop import OpenLoop
from traffic import Traffic

pytestmark = pytest.mark.integration


def truth(artifact, x):
    """The in-process answer of the same artifact."""
    session = onnxruntime.InferenceSession(str(artifact.model_path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def row(i):
    return [float(i % 97), 1.0, -2.0, 0.5]


def body(artifact):
    """Bodies for `Traffic` with the first output value that is right for them."""
    table = truth(artifact, np.array([row(i) for i in range(97)], np.float32))[:, 0]

    def make(i):
        return (
            {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": row(i)}]},
            float(table[i % 97]),
        )

    return make


@pytest.fixture
def served(prism, tmp_path, request):
    """A model of the test's own with two deployed versions, 100 % on the first."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:60].strip("-")
    one, two = mlp_artifact(tmp_path / "one", seed=1), mlp_artifact(tmp_path / "two", seed=2)
    for artifact in (one, two):
        prism.cli("publish", name, str(artifact.path))
    prism.cli("deploy", f"{name}:1", "--cpus", "0.1")
    prism.cli("deploy", f"{name}:2", "--cpus", "0.1")
    yield name, one, two
    prism.store.remove(prism.store.read(name), by="test")


def test_the_served_answer_is_the_in_process_answer(prism, served):
    import tritonclient.http as triton

    name, one, two = served
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    client = triton.InferenceServerClient(f"127.0.0.1:{prism.port}")
    assert client.is_server_live() and client.is_model_ready(name)
    for version, artifact in (("1", one), ("2", two)):
        tensor = triton.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        answer = client.infer(name, [tensor], model_version=version)
        np.testing.assert_allclose(answer.as_numpy("y"), truth(artifact, x), rtol=1e-5, atol=1e-6)
        assert answer.get_response()["model_version"] == version
    assert client.get_model_metadata(name)["inputs"][0]["shape"] == [-1, 4]


def test_a_sticky_key_keeps_its_version_and_shares_are_those_intended(prism, served):
    name, one, _ = served
    prism.cli("split", name, "1=70,2=30")
    prism.until(lambda: split_applied(prism, name, 3000))
    seen = {}
    for key in ("ada", "grace", "linus", "ken"):
        for _ in range(5):
            request = urllib.request.Request(
                prism.url(f"/v2/models/{name}/infer"),
                data=json.dumps(body(one)(1)[0]).encode(),
                headers={"X-Prism-Key": key, "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=10) as response:
                version = response.headers["X-Prism-Model-Version"]
            assert seen.setdefault(key, version) == version
    either = lambda i: (body(one)(1)[0], None)  # noqa: E731
    with Traffic(prism.url(f"/v2/models/{name}/infer"), either, workers=8) as traffic:
        traffic.wait_for(1500)
    out = traffic.outcome
    assert not out.failed
    assert abs(out.versions["2"] / out.ok - 0.30) < 0.06


def split_applied(prism, name, share_bp):
    """Whether the gateway routes by a split that gives version 2 this share."""
    overview = json.loads(prism.get("/api/v1/overview")[1])
    model = next(m for m in overview["models"] if m["name"] == name)
    return share_bp in json.dumps(model) if isinstance(share_bp, str) else str(share_bp) in json.dumps(model)


def test_moving_all_traffic_and_back_loses_nothing(prism, served):
    name, one, two = served
    answers = {"1": body(one), "2": body(two)}
    with Traffic(prism.url(f"/v2/models/{name}/infer"), lambda i: (answers["1"](i)[0], None)) as traffic:
        traffic.wait_for(50)
        prism.cli("promote", f"{name}:2")
        prism.until(lambda: traffic.outcome.versions["2"] > 50)
        prism.cli("rollback", name)
        before = traffic.outcome.versions["1"]
        prism.until(lambda: traffic.outcome.versions["1"] > before + 50)
    assert not traffic.outcome.failed
    assert traffic.outcome.ok == traffic.outcome.sent


def test_a_killed_replica_loses_no_request(prism, served):
    import os
    import signal

    name, one, _ = served
    prism.cli("deploy", f"{name}:1", "--min", "2", "--max", "2", "--cpus", "0.1")
    prism.until(lambda: len(prism.replica_pids(name)) == 2)
    with Traffic(prism.url(f"/v2/models/{name}/versions/1/infer"), body(one), workers=8) as traffic:
        traffic.wait_for(200)
        os.kill(next(iter(prism.replica_pids(name).values())), signal.SIGKILL)
        traffic.wait_for(500)
        prism.until(lambda: len(prism.replica_pids(name)) == 2)
        traffic.wait_for(200)
    assert not traffic.outcome.failed, traffic.outcome.bodies
    assert not traffic.outcome.wrong


def test_the_only_replica_killed_is_waited_for(prism, served):
    import os
    import signal

    name, one, _ = served
    with Traffic(prism.url(f"/v2/models/{name}/versions/1/infer"), body(one), workers=2) as traffic:
        traffic.wait_for(50)
        (pid,) = prism.replica_pids(name).values()
        os.kill(pid, signal.SIGKILL)
        traffic.wait_for(50)
    assert not traffic.outcome.failed, traffic.outcome.bodies


def test_scaling_down_under_load_loses_nothing(prism, served):
    name, one, _ = served
    prism.cli("deploy", f"{name}:1", "--min", "3", "--max", "3", "--cpus", "0.1")
    prism.until(lambda: len(prism.replica_pids(name)) == 3)
    with Traffic(prism.url(f"/v2/models/{name}/versions/1/infer"), body(one), workers=8) as traffic:
        traffic.wait_for(200)
        prism.cli("deploy", f"{name}:1", "--min", "1", "--max", "1", "--cpus", "0.1")
        prism.until(lambda: len(prism.replica_pids(name)) == 1)
        traffic.wait_for(200)
    assert not traffic.outcome.failed, traffic.outcome.bodies
    assert not traffic.outcome.wrong


def test_changes_in_place_keep_replicas_and_no_change_loses_a_request_of_an_open_loop(prism, served, tmp_path):
    name, one, _ = served
    with OpenLoop(prism, tmp_path / "load", name) as load:
        before = prism.replica_pids(name)
        prism.cli("scale", f"{name}:1", "--min", "2", "--max", "3")
        prism.until(lambda: len(prism.replica_pids(name)) == 2)
        kept = prism.replica_pids(name) | prism.replica_pids(name, "2")
        assert before.items() <= kept.items()
        settings = ("--queue-rows", "2048", "--batch-rows", "8", "--max-wait-ms", "2", "--objective-ms", "400")
        prism.cli("deploy", f"{name}:1", "--min", "1", "--max", "4", "--down-after", "60", *settings)
        prism.cli("deploy", f"{name}:2", "--max-wait-ms", "400")
        assert min(seconds(prism, f"/v2/models/{name}/versions/2/infer", body(one)(1)[0]) for _ in range(3)) > 0.4
        assert prism.replica_pids(name) | prism.replica_pids(name, "2") == kept
        prism.cli("deploy", f"{name}:1", "--cpus", "0.2")
        prism.until(lambda: (now := prism.replica_pids(name)) and not now.keys() & kept.keys())
    load.nothing_failed()


def seconds(prism, path, request):
    """Until `request` was answered."""
    began_s = time.monotonic()
    with urllib.request.urlopen(prism.url(path), json.dumps(request).encode(), timeout=10) as response:
        response.read()
    return time.monotonic() - began_s


def test_a_version_undeployed_right_after_its_traffic_was_moved_loses_nothing(prism, served):
    name, one, _ = served
    prism.cli("split", name, "1=50,2=50")
    with Traffic(prism.url(f"/v2/models/{name}/infer"), lambda i: (body(one)(i)[0], None), workers=16) as traffic:
        prism.until(lambda: traffic.outcome.versions["2"] > 100)
        prism.cli("split", name, "1=100")
        prism.cli("undeploy", f"{name}:2")
        prism.until(lambda: not prism.replica_pids(name, "2"))
        traffic.wait_for(100)
    assert not traffic.outcome.failed, traffic.outcome.bodies


def test_the_controller_can_die_and_nothing_is_replaced(prism, served):
    import os
    import signal

    import psutil

    name, one, _ = served
    before = prism.replica_pids(name)
    controllers = [
        p.pid
        for p in psutil.process_iter(["cmdline"])
        if "ServeReplica:prism-controller" in " ".join(p.info["cmdline"] or ())
        and p.environ().get("PRISM_HOME_KEY") == _key(prism)
    ]
    assert len(controllers) == 1
    with Traffic(prism.url(f"/v2/models/{name}/versions/1/infer"), body(one), workers=2) as traffic:
        os.kill(controllers[0], signal.SIGKILL)
        prism.until(
            lambda: [
                p.pid
                for p in psutil.process_iter(["cmdline"])
                if "ServeReplica:prism-controller" in " ".join(p.info["cmdline"] or ()) and p.pid != controllers[0]
            ]
        )
        time.sleep(4)  # several reconcile steps of the new one
        traffic.wait_for(50)
    assert not traffic.outcome.failed
    assert prism.replica_pids(name) == before


def _key(prism):
    from cluster.home import Home

    return Home(prism.home).key


def test_a_damaged_artifact_fails_with_its_reason_and_harms_nobody(prism, served, tmp_path):
    name, one, _ = served
    bad = mlp_artifact(tmp_path / "bad", seed=3)
    published = prism.json("publish", name, str(bad.path))
    stored = prism.store.read(name).versions["3"].uri.removeprefix("file://")
    with open(f"{stored}/model.onnx", "r+b") as file:
        file.seek(30)
        file.write(b"\x00\x00\x00\x00")
    with Traffic(prism.url(f"/v2/models/{name}/infer"), body(one)) as traffic:
        refused = prism.cli("deploy", f"{name}:3", "--cpus", "0.1", check=False)
        traffic.wait_for(20)
    assert published and refused.returncode == 1
    assert "model.onnx: expected SHA-256" in refused.stderr
    assert not traffic.outcome.failed
    status, answer = prism.get(f"/v2/models/{name}/versions/3/ready")
    assert status in (400, 503), answer
    prism.cli("undeploy", f"{name}:3")


def test_traffic_cannot_be_given_to_a_version_that_is_not_ready(prism, served, tmp_path):
    name, _, _ = served
    prism.cli("publish", name, str(mlp_artifact(tmp_path / "new", seed=4).path))
    refused = prism.cli("split", name, "1=50,3=50", check=False)
    assert refused.returncode == 1 and f"{name}:3" in refused.stderr


def test_unknown_names_are_clear_errors(prism, served):
    name, _, _ = served
    for command in (["deploy", f"{name}:9"], ["split", "nosuch", "1=100"], ["rollback", "nosuch"], ["infer", "nosuch"]):
        refused = prism.cli(*command, check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: ") and len(refused.stderr.splitlines()) == 1, refused.stderr
    assert prism.get("/v2/models/nosuch")[0] == 404
    assert "nosuch" in prism.get("/v2/models/nosuch")[1].decode()


def test_several_inputs_free_dimensions_and_text_come_through(prism, tmp_path):
    import tritonclient.http as triton

    client = triton.InferenceServerClient(f"127.0.0.1:{prism.port}")
    prism.cli("publish", "pair", str(two_input_artifact(tmp_path / "pair").path))
    prism.cli("publish", "text", str(text_artifact(tmp_path / "text").path))
    prism.cli("deploy", "pair:1", "--cpus", "0.1")
    prism.cli("deploy", "text:1", "--cpus", "0.1")
    a, b = np.ones((2, 2), np.float32), np.arange(10, dtype=np.int64).reshape(2, 5)
    inputs = [triton.InferInput("a", a.shape, "FP32"), triton.InferInput("b", b.shape, "INT64")]
    inputs[0].set_data_from_numpy(a)
    inputs[1].set_data_from_numpy(b, binary_data=False)
    answer = client.infer("pair", inputs)
    np.testing.assert_array_equal(answer.as_numpy("twice"), 2 * b)
    np.testing.assert_array_equal(answer.as_numpy("sum"), a + b.sum(1, keepdims=True))
    words = np.array([["käse"], [""], ["x" * 1000]], dtype=object)
    text = triton.InferInput("text", words.shape, "BYTES")
    text.set_data_from_numpy(words)
    echoed = client.infer("text", [text]).as_numpy("same")
    assert [w.decode() for w in echoed[:, 0]] == list(words[:, 0])
    for model in ("pair", "text"):
        prism.store.remove(prism.store.read(model), by="test")


def test_more_than_it_can_do_is_answered_with_429_or_504_and_never_500(prism, tmp_path):
    slow = slow_artifact(tmp_path / "slow", 50, max_rows=1)
    prism.cli("publish", "slow", str(slow.path))
    prism.cli("deploy", "slow:1", "--cpus", "0.5", "--queue-rows", "4")
    one = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": row(1)}]}
    timeout = {"X-Prism-Timeout-Ms": lambda i: "400"}
    with Traffic(prism.url("/v2/models/slow/infer"), lambda i: (one, None), workers=64, headers=timeout) as traffic:
        traffic.wait_for(30)
    assert set(traffic.outcome.status) <= {200, 429, 504}, traffic.outcome.bodies
    assert traffic.outcome.failed
    prism.store.remove(prism.store.read("slow"), by="test")


def test_a_version_at_zero_is_woken_by_a_request(prism, tmp_path):
    prism.cli("publish", "sleepy", str(mlp_artifact(tmp_path / "sleepy", seed=5).path))
    prism.cli("deploy", "sleepy:1", "--min", "0", "--max", "1", "--cpus", "0.1", "--idle-after", "2")
    prism.until(lambda: not prism.replica_pids("sleepy"), 60)
    prism.until(lambda: prism.store.statuses("sleepy")["1"].state == "ASLEEP")
    with Traffic(
        prism.url("/v2/models/sleepy/infer"), body(mlp_artifact(tmp_path / "same", seed=5)), workers=3
    ) as traffic:
        traffic.wait_for(10)
    assert not traffic.outcome.failed and not traffic.outcome.wrong
    prism.store.remove(prism.store.read("sleepy"), by="test")
