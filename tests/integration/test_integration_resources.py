"""What replicas need, on a node with one logical GPU; and the errors an operator makes, which change nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import trt_models

from cluster.artifact import SAMPLE
from cluster.policy.share import Claim, share
from converters.proof.sample_answers import ANSWERS
from onnx_models import mlp_artifact, slow_artifact
from running import PRISM, Prism, free_port
from traffic import Traffic

pytestmark = pytest.mark.integration

ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]}

NUMBERS = itertools.count(1)

# What replicas find in place of TensorRT and torch's CUDA side.
TESTS = Path(trt_models.__file__).parent
STAND_INS = os.pathsep.join([str(TESTS / "stand_ins"), str(TESTS)])


def body(_):
    return ROW, None


@pytest.fixture(scope="module")
def gpu_node():
    """A Prism of this module's own: 8 CPUs, one GPU that only Ray's bookkeeping knows, and a label."""
    with tempfile.TemporaryDirectory(prefix="prism-resources-") as folder:
        environ = {"PYTHONPATH": STAND_INS, "TENSORRT_BUILDS": str(Path(folder) / "builds")}
        made = Prism(Path(folder) / "home", free_port(), environ)
        settings = Path(folder) / "settings.yaml"
        settings.write_text("ray: {num_cpus: 8, num_gpus: 1, labels: {pool: red}}\ngateway: {max_deadline_s: 60}\n")
        try:
            made.cli("up", "--http-port", str(made.port), "--grpc-port", str(free_port()), "--config", str(settings))
            made.cli("publish", "m", str(mlp_artifact(Path(folder) / "m", seed=1).path))
            made.cli("deploy", "m:1", "--cpus", "0.1")
            yield made
        finally:
            made.cli("down", check=False)


def version_of(prism, model, version="1"):
    found = {each["model"]: each for each in prism.json("status")["models"]}
    return next(each for each in found[model]["versions"] if each["version"] == version)


def waits(prism, model, why, version="1"):
    """Once a replica of the version waits for a node because of `why`."""

    def told():
        status = prism.store.statuses(model).get(version)
        return status is not None and status.pending and why in status.reason

    prism.until(told, 60)


@pytest.fixture
def published(gpu_node, tmp_path):
    """A model of the test's own."""
    name = f"own{next(NUMBERS)}"
    gpu_node.cli("publish", name, str(mlp_artifact(tmp_path / "a", seed=3).path))
    yield name
    gpu_node.store.remove(gpu_node.store.read(name), by="test")


def test_what_no_node_has_is_waited_for_and_status_says_what(gpu_node, published):
    little = ["--cpus", "0.1", "--gpus", "0", "--accelerator", "cpu", "--memory", "auto"]
    with Traffic(gpu_node.url("/v2/models/m/infer"), body, workers=1, pause_s=0.02) as traffic:
        for options, why in (
            (("--gpus", "2", "--accelerator", "auto"), "1 replica waits: no node has 2 GPUs: the largest has 1"),
            (("--cpus", "64"), "1 replica waits: no node has 64 CPUs: the largest has 8"),
            (("--memory", "4T"), "1 replica waits: no node has 4096.0 GiB of memory: the largest has"),
            (("--on", "pool=blue"), "1 replica waits: no node has pool=blue (pool: red)"),
        ):
            gpu_node.cli("deploy", f"{published}:1", *little, *options, "--no-wait")
            waits(gpu_node, published, why)
        version = version_of(gpu_node, published)
        assert (version["state"], version["replicas"]) == ("LOADING", 0) and version["pending"]
        assert why in gpu_node.cli("status", published).stdout
        assert gpu_node.json("deploy", f"{published}:1", *little, "--on", "pool=red")["state"] == "READY"
    assert traffic.outcome.ok and not traffic.outcome.failed


def test_replicas_share_a_gpu_and_the_next_one_waits_for_room(gpu_node, published):
    share = ("--cpus", "0.1", "--gpus", "0.5", "--allow-cpu")
    gpu_node.cli("deploy", f"{published}:1", *share, "--min", "2", "--max", "3")
    version = version_of(gpu_node, published)
    assert (version["replicas"], version["accelerator"]) == (2, "gpu")
    (node,) = gpu_node.json("status")["nodes"]["nodes"]
    assert node["used"]["GPU"] == 1
    gpu_node.cli("scale", f"{published}:1", "--min", "3")
    waits(gpu_node, published, "no node has 0.5 GPUs free: at most 0 of 1 GPU")
    assert version_of(gpu_node, published)["state"] == "READY"
    assert gpu_node.get(f"/v2/models/{published}/ready")[0] == 200


def test_versions_that_all_want_more_of_a_gpu_are_granted_it_by_weight_and_priority_and_no_canary_starves_stable(
    gpu_node, tmp_path
):
    """A stable version, its canary and a rival have a quarter of the GPU each, and all want the fourth."""
    slow = str(slow_artifact(tmp_path / "a", 10, max_rows=1).path)
    every = ("--cpus", "0.1", "--gpus", "0.25", "--allow-cpu", "--min", "1", "--max", "3", "--utilisation", "0.05")
    for model, *options in (("shared",), ("shared", "--priority", "5"), ("rival", "--weight", "2")):
        version = gpu_node.json("publish", model, slow, "--allow-same")["version"]
        gpu_node.cli("deploy", f"{model}:{version}", *every, *options, "--no-wait")
    quarter = {"wants": 1, "needs": {"GPU": 0.25}, "least": 1, "most": 3}
    claims = {
        "shared:1": Claim(**quarter),
        "shared:2": Claim(**quarter, priority=5, after="shared:1"),
        "rival:1": Claim(**quarter, weight=2.0),
    }

    def statuses():
        of = {model: gpu_node.store.statuses(model) for model in ("shared", "rival")}
        return {f"{model}:{version}": status for model in of for version, status in of[model].items()}

    def as_shared():
        """What `share` gives them once all want more than one replica, have this, and are told so; {} before."""
        found = statuses()
        given = share({name: replace(claims[name], wants=each.wants) for name, each in found.items()}, {"GPU": 1.0})
        for name, each in found.items():
            held = f"wants {each.wants} replicas and is granted {given[name]}: others need the rest"
            has = each.wants > 1 and (each.granted, each.replicas, each.pending) == (given[name], given[name], 0)
            if not has or (each.wants > each.granted) != each.scaling.startswith(held):
                return {}
        return given

    try:
        gpu_node.until(lambda: [status.state for status in statuses().values()] == ["READY"] * 3)
        gpu_node.cli("split", "shared", "1=60,2=40")
        gpu_node.cli("split", "rival", "1=100")
        with (
            Traffic(gpu_node.url("/v2/models/shared/infer"), body, workers=4, pause_s=0.1) as shared,
            Traffic(gpu_node.url("/v2/models/rival/infer"), body, workers=2, pause_s=0.1) as rival,
        ):
            assert gpu_node.until(as_shared) == {"shared:1": 1, "shared:2": 1, "rival:1": 2}
            gpu_node.cli("scale", "shared:1", "--priority", "1")
            claims["shared:1"] = replace(claims["shared:1"], priority=1)
            assert gpu_node.until(as_shared) == {"shared:1": 2, "shared:2": 1, "rival:1": 1}
            assert "is granted 1: others need the rest" in gpu_node.cli("status", "rival").stdout
        for traffic in (shared, rival):
            assert traffic.outcome.ok and not traffic.outcome.failed, traffic.outcome.bodies
    finally:
        for model in ("shared", "rival"):
            gpu_node.store.remove(gpu_node.store.read(model), by="test")


def test_a_gpu_that_cannot_be_used_fails_the_version_unless_the_cpu_was_allowed(gpu_node, published):
    done = gpu_node.cli("deploy", f"{published}:1", "--cpus", "0.1", "--accelerator", "gpu", check=False)
    assert done.returncode == 1
    assert "EngineFailed: accelerator: expected gpu, but this ONNX Runtime offers" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(bool(trt_models.family()), reason="there is a real TensorRT: tests/gpu")
def test_an_engine_is_built_by_the_first_replica_on_its_gpu_and_the_next_one_takes_it_from_the_store(
    gpu_node, tmp_path
):
    artifact = trt_models.left(mlp_artifact)(tmp_path / "a")
    x, y = (np.load(artifact.path / file)[name] for file, name in ((SAMPLE, "x"), (ANSWERS, "y")))
    rows = {"inputs": [{"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}]}
    digest = gpu_node.json("publish", "engine", str(artifact.path))["digest"]
    try:
        gpu_node.cli("deploy", "engine:1", "--cpus", "0.1", "--gpus", "0.5", "--max", "2")
        assert version_of(gpu_node, "engine")["accelerator"] == "gpu"
        gpu_node.cli("scale", "engine:1", "--min", "2")

        def started():
            return len(starts := version_of(gpu_node, "engine")["starts"]) == 2 and starts

        first, second = sorted(gpu_node.until(started), key=lambda start: start["ready_s"])
        assert first["steps"]["build"] > 0 and "build" not in second["steps"]
        # Once, with the half of the stand-in's 16 GiB that a replica has.
        assert Path(gpu_node.environ["TENSORRT_BUILDS"]).read_text().split() == [str(8 << 30)]
        store = Path(gpu_node.boot.artifacts_url.removeprefix("file://"))
        assert len(list((store / "derived" / digest).glob("*/model.engine"))) == 1
        with Traffic(gpu_node.url("/v2/models/engine/infer"), lambda _: (rows, float(y[0, 0]))) as traffic:
            traffic.wait_for(20)
        assert not traffic.outcome.failed and not traffic.outcome.wrong
    finally:
        gpu_node.store.remove(gpu_node.store.read("engine"), by="test")


def test_status_tells_how_a_replica_started(gpu_node):
    (start,) = gpu_node.until(lambda: version_of(gpu_node, "m")["starts"])
    assert {"process", "fetch", "load", "warm-up", "measure", "listen"} == set(start["steps"])
    assert 0 < sum(start["steps"].values()) < 120
    assert "started in" in gpu_node.cli("status", "m").stdout


def test_watching_shows_the_rates_of_real_traffic(gpu_node):
    watching = subprocess.Popen(
        [PRISM, "status", "m", "--watch", "--json", "--home", str(gpu_node.home)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    try:
        with Traffic(gpu_node.url("/v2/models/m/infer"), body, workers=2, pause_s=0.01) as traffic:
            traffic.wait_for(20)
            lines = [json.loads(watching.stdout.readline()) for _ in range(4)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 0
    finally:
        watching.kill()
        watching.communicate()
    rates = [line["models"][0]["versions"][0]["live"] for line in lines]
    assert rates[-1]["requests_per_s"] > 1 and rates[-1]["errors_per_s"] == 0
    assert 0 < rates[-1]["p99_s"] < 30 and rates[-1]["batch_rows"] >= 1


async def open_loop(url, at_s, schedule):
    """Status of a request sent at each of `schedule` (seconds after `at_s` on this loop's clock), answered or not."""
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:

        async def one(due_s):
            await asyncio.sleep(max(0.0, at_s + due_s - loop.time()))
            async with session.post(url, json=ROW) as response:
                await response.read()
                return response.status

        return await asyncio.gather(*(one(due_s) for due_s in schedule))


async def test_a_version_that_sleeps_and_wakes_twice_answers_every_request_of_an_open_loop(gpu_node, published):
    url = gpu_node.url(f"/v2/models/{published}/infer")
    await asyncio.to_thread(
        gpu_node.cli, "deploy", f"{published}:1", "--cpus", "0.1", "--min", "0", "--max", "1", "--idle-after", "2"
    )

    def asleep():
        return gpu_node.store.statuses(published)["1"].state == "ASLEEP" and not gpu_node.replica_pids(published)

    for _ in range(2):
        await asyncio.to_thread(gpu_node.until, asleep, 60)
        # Ten a second from the first on, whether or not anybody is awake yet.
        statuses = await open_loop(url, asyncio.get_running_loop().time(), [n / 10 for n in range(60)])
        assert statuses == [200] * 60


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("deploy", "m:1", "--gpus", "1.5"), "deploy.num_gpus: expected a share up to 1, or a whole number"),
        (("scale", "m:1", "--min", "5", "--max", "2"), "deploy.min_replicas: expected 0 to max_replicas, got 5"),
        (("drain", "10.9.9.9"), "node: '10.9.9.9' names none; there are:"),
    ],
)
def test_an_operators_mistake_is_one_line_and_changes_nothing(gpu_node, arguments, told):
    before = gpu_node.store.read("m")
    replicas = gpu_node.replica_pids("m")
    done = gpu_node.cli(*arguments, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and told in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert gpu_node.store.read("m") == before and gpu_node.replica_pids("m") == replicas


def test_a_second_prism_that_cannot_start_says_why_and_leaves_the_first_alone(gpu_node, tmp_path):
    other = Prism(tmp_path / "other", free_port())
    with Traffic(gpu_node.url("/v2/models/m/infer"), body, workers=1, pause_s=0.02) as traffic:
        taken = other.cli("up", "--http-port", str(gpu_node.port), check=False)
        assert taken.returncode == 1
        assert (
            f"cannot listen on 127.0.0.1:{gpu_node.port}" in taken.stderr
            and len(taken.stderr.strip().splitlines()) == 1
        )
        settings = tmp_path / "settings.yaml"
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            port = nobody.getsockname()[1]
            settings.write_text(f"store: {{url: 'redis://:secret@127.0.0.1:{port}/0'}}\n")
            unreachable = other.cli("up", "--http-port", "0", "--config", str(settings), check=False)
        assert unreachable.returncode == 1
        assert f"127.0.0.1:{port}" in unreachable.stderr and "secret" not in unreachable.stderr
        assert len(unreachable.stderr.strip().splitlines()) == 1
        traffic.wait_for(5)
    assert not traffic.outcome.failed
    assert other.cli("down").stdout.startswith("nothing is running")


def test_an_upgrade_takes_over_state_and_traffic_and_a_terminated_prism_ends_whole(gpu_node, tmp_path):
    """As docs/upgrade.md says; changing `traffic.url` is what a load balancer does."""
    backup, settings = tmp_path / "state.backup", tmp_path / "settings.yaml"
    gpu_node.cli("store", "backup", str(backup))
    before = gpu_node.store.read("m")
    settings.write_text(f"ray: {{num_cpus: 8}}\nartifacts: {{url: '{gpu_node.boot.artifacts_url}'}}\n")
    new = Prism(tmp_path / "new", free_port())
    up = [PRISM, "up", "--block", "--http-port", str(new.port), "--config", str(settings), "--home", str(new.home)]
    foreground = subprocess.Popen(up, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("up in") for line in foreground.stdout)
        with Traffic(gpu_node.url("/v2/models/m/infer"), body, workers=2, pause_s=0.01) as traffic:
            traffic.wait_for(10)
            new.cli("store", "restore", str(backup), "--reason", "upgrade")
            new.until(lambda: (status := new.store.statuses("m").get("1")) and status.state == "READY", 120)
            new.until(lambda: new.get("/v2/models/m/ready")[0] == 200)
            traffic.url = new.url("/v2/models/m/infer")
            traffic.wait_for(50)
        assert not traffic.outcome.failed
        after = new.store.read("m")
        assert (after.split, after.labels, after.versions) == (before.split, before.labels, before.versions)
        assert gpu_node.store.read("m") == before and gpu_node.get("/v2/models/m/ready")[0] == 200
        foreground.terminate()
        assert foreground.wait(60) == 0, foreground.stderr.read()
        assert new.cli("down").stdout.startswith("nothing is running")
    finally:
        foreground.kill()
        new.cli("down", check=False)
