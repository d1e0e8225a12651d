"""What survives: the store killed, the gateway killed, everything taken down and brought up again."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import redis

from cluster.home import Home
from onnx_models import mlp_artifact
from running import Prism, free_port
from traffic import Traffic

pytestmark = pytest.mark.integration

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]}


@pytest.fixture(scope="module")
def own():
    """A Prism of this module's own, because it is killed and taken down; one model in two versions, split 60/40."""
    with tempfile.TemporaryDirectory(prefix="prism-survival-") as folder:
        made = Prism(Path(folder) / "home", free_port())
        try:
            made.cli("up", "--http-port", str(made.port), "--grpc-port", str(free_port()))
            for seed in (1, 2):
                made.cli("publish", "m", str(mlp_artifact(Path(folder) / str(seed), seed=seed).path))
                made.cli("deploy", f"m:{seed}", "--cpus", "0.1")
            made.cli("split", "m", "1=60,2=40")
            yield made
        finally:
            made.cli("down", check=False)
    assert not [p for p in psutil.process_iter() if marked(p, Home(made.home).key)], "processes were left behind"


def marked(process, key):
    try:
        return process.environ().get("PRISM_HOME_KEY") == key and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def pid_of(own, words):
    """The home's process whose command line holds all `words`."""
    return [
        p.pid
        for p in psutil.process_iter(["cmdline"])
        if all(word in " ".join(p.info["cmdline"] or ()) for word in words) and marked(p, Home(own.home).key)
    ]


def test_traffic_does_not_notice_a_killed_store_and_its_data_comes_back(own):
    (store,) = pid_of(own, ["valkey-server"]) or pid_of(own, ["redis-server"])
    revision = own.store.read("m").revision
    with Traffic(own.url("/v2/models/m/infer"), lambda i: (BODY, None), workers=4) as traffic:
        traffic.wait_for(100)
        os.kill(store, signal.SIGKILL)
        traffic.wait_for(300)
        own.until(lambda: pid_of(own, ["valkey-server"]) not in ([], [store]), 20)
        traffic.wait_for(100)
    assert not traffic.outcome.failed, traffic.outcome.bodies
    assert own.store.read("m").revision == revision
    own.cli("split", "m", "1=50,2=50")  # writes work again
    own.cli("split", "m", "1=60,2=40")


def test_a_store_that_lost_everything_is_restored_while_traffic_goes_on(own):
    with Traffic(own.url("/v2/models/m/infer"), lambda i: (BODY, None), workers=4) as traffic:
        traffic.wait_for(100)
        redis.Redis.from_url(own.boot.store_url).flushall()
        own.until(lambda: "regressed" in own.cli("status", check=False).stdout)
        refused = own.cli("split", "m", "1=10,2=90", check=False)
        traffic.wait_for(200)
        own.cli("store", "restore")
        own.until(lambda: {s.state for s in own.store.statuses("m").values()} == {"READY"})
        traffic.wait_for(100)
    assert refused.returncode == 1 and "restore" in refused.stderr
    assert not traffic.outcome.failed, traffic.outcome.bodies
    assert str(own.store.read("m").split) == "1=60,2=40"


def test_a_killed_gateway_breaks_only_the_connections_it_held(own):
    (gateway,) = pid_of(own, ["ServeReplica", "gateway"])
    with Traffic(own.url("/v2/models/m/infer"), lambda i: (BODY, None), workers=4) as traffic:
        traffic.wait_for(100)
        os.kill(gateway, signal.SIGKILL)
        time.sleep(0.2)
        traffic.wait_for(100, timeout_s=40)
    broken = traffic.outcome.failed
    assert all(isinstance(kind, str) for kind in broken), broken  # connections, never an HTTP error
    assert sum(broken.values()) <= 4, broken


def test_after_down_and_up_the_same_versions_answer_with_the_same_split(own):
    before = own.json("status")
    own.cli("down")
    assert own.cli("status", check=False).returncode == 1
    own.cli("up", "--http-port", str(own.port), "--grpc-port", str(free_port()))
    own.until(lambda: {s.state for s in own.store.statuses("m").values()} == {"READY"})
    with Traffic(own.url("/v2/models/m/infer"), lambda i: (BODY, None), workers=4) as traffic:
        traffic.wait_for(800)
    assert not traffic.outcome.failed
    assert abs(traffic.outcome.versions["2"] / traffic.outcome.ok - 0.4) < 0.08
    after = own.json("status")
    assert json.dumps(before["models"][0]["split"]) == json.dumps(after["models"][0]["split"])


def test_down_stops_everything_even_when_the_supervisor_was_killed(own):
    (supervisor,) = pid_of(own, ["cluster.supervisor"])
    os.kill(supervisor, signal.SIGKILL)
    own.cli("down")
    assert not [p.pid for p in psutil.process_iter() if marked(p, Home(own.home).key)]
