"""Two gateway processes behind one port: whichever is asked for numbers answers for both."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.home import Home
from onnx_models import mlp_artifact
from running import Prism, free_port
from traffic import Traffic

pytestmark = pytest.mark.integration

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]}


@pytest.fixture(scope="module")
def pair():
    """A Prism with two gateways and one model."""
    with tempfile.TemporaryDirectory(prefix="prism-pair-") as folder:
        made = Prism(Path(folder) / "home", free_port())
        settings = Path(folder) / "settings.yaml"
        settings.write_text("ray:\n  num_cpus: 8\ngateway:\n  replicas: 2\n  max_deadline_s: 20\n  log_sample: 0.2\n")
        ports = ("--http-port", str(made.port), "--grpc-port", str(free_port()))
        try:
            made.cli("up", *ports, "--config", str(settings))
            made.cli("publish", "m", str(mlp_artifact(Path(folder) / "m", seed=1).path))
            made.cli("deploy", "m:1", "--cpus", "0.1")
            made.until(lambda: len(gateways(made)) == 2)
            yield made
        finally:
            made.cli("down", check=False)


def scrape(prism):
    """Samples of `/metrics` by name and labels."""
    text = prism.get("/metrics")[1].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def gateways(prism):
    """Names of the gateways that a scrape covers."""
    return {dict(labels)["gateway"] for name, labels in scrape(prism) if name == "prism_gateway_info"}


def answered(prism):
    """Successes by gateway."""
    found = {}
    for (name, labels), value in scrape(prism).items():
        about = dict(labels)
        if name == "prism_requests_total" and about["status"] == "200":
            found[about["gateway"]] = found.get(about["gateway"], 0) + value
    return found


def pids(prism):
    key = Home(prism.home).key
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        try:
            if "ServeReplica" in line and "gateway" in line and process.environ().get("PRISM_HOME_KEY") == key:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def traffic_to(prism):
    return Traffic(prism.url("/v2/models/m/infer"), lambda i: (BODY, None), workers=24)


def test_every_request_is_counted_once_whoever_answered_and_whoever_is_asked(pair):
    before = answered(pair)
    with traffic_to(pair) as traffic:
        traffic.wait_for(400)
        while_busy = answered(pair)
        traffic.wait_for(400)
    assert not traffic.outcome.failed
    after = answered(pair)
    assert sum(after.values()) - sum(before.values()) == traffic.outcome.ok == traffic.outcome.sent
    assert all(after[name] >= while_busy[name] >= before.get(name, 0) for name in while_busy)
    assert all(value > 0 for value in after.values()) and len(after) == 2
    for _ in range(4):  # every one of them, sooner or later
        assert answered(pair) == after
        statistics = json.loads(pair.get("/v2/models/m/stats")[1])["model_stats"][0]
        assert statistics["inference_stats"]["success"]["count"] == sum(after.values())
        overview = json.loads(pair.get("/api/v1/overview")[1])
        (version,) = overview["models"][0]["versions"]
        assert version["counts"]["status"]["200"] == sum(after.values())
        assert version["connected"] == 1 and overview["silent_gateways"] == 0


def test_a_share_of_the_requests_is_logged_by_whichever_gateway_answered(pair):
    with traffic_to(pair) as traffic:
        traffic.wait_for(1000)
    names = gateways(pair)
    file = pair.home / "logs" / "requests.jsonl"
    pair.until(lambda: file.exists() and {line["gateway"] for line in sampled(file)} == names)
    lines = sampled(file)
    assert all(line["model"] == "m" and line["status"] == 200 and line["request_s"] > 0 for line in lines)
    assert len(lines) < sum(answered(pair).values()) / 2


def sampled(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_gateway_that_hangs_is_left_out_in_time_and_a_killed_one_is_replaced(pair):
    before = gateways(pair)
    victim, _ = pids(pair)
    os.kill(victim, signal.SIGSTOP)
    try:
        started_s = time.monotonic()
        seen = pair.until(lambda: (found := scrape(pair)).get(("prism_gateways_silent", ())) == 1 and found, 20)
        assert time.monotonic() - started_s < 20
    finally:
        os.kill(victim, signal.SIGKILL)
    assert len([name for name, _ in seen if name == "prism_gateway_info"]) == 1
    pair.until(lambda: len(gateways(pair)) == 2 and len(gateways(pair) & before) == 1)
    new = (gateways(pair) - before).pop()
    with traffic_to(pair) as traffic:
        pair.until(lambda: answered(pair).get(new, 0) > 50)
    assert answered(pair)[new] < traffic.outcome.ok  # it began at 0, under a name of its own
    assert scrape(pair)["prism_gateways_silent", ()] == 0
