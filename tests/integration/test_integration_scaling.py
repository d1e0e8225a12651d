"""Replicas follow load on a real Prism, and two versions share what is too little for both."""

from __future__ import annotations

import pytest

from loadtest.bench.work import prepare, write_artifact
from loadtest.scaling_live import SLOW
from onnx_models import mlp_artifact
from traffic import Traffic

pytestmark = pytest.mark.integration

ROW = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]}


def body(_):
    return ROW, None


@pytest.fixture(scope="module")
def slow(prism, tmp_path_factory):
    """The name of a published model that takes some 20 ms a row."""
    prepared = prepare(SLOW, tmp_path_factory.mktemp("slow"))
    write_artifact(prepared)
    prism.cli("publish", "busy", str(prepared.artifact))
    yield "busy"
    prism.store.remove(prism.store.read("busy"), by="test")


def status_of(prism, model):
    return prism.store.statuses(model)["1"]


def test_a_busy_version_gets_a_replica_and_loses_no_request(prism, slow):
    prism.cli("deploy", f"{slow}:1", "--cpus", "0.1", "--max", "2", "--down-after", "1")
    with Traffic(prism.url(f"/v2/models/{slow}/infer"), body, workers=6) as traffic:
        prism.until(lambda: status_of(prism, slow).replicas == 2, 120)
        traffic.wait_for(20, 60)
        prism.until(lambda: len(prism.replica_pids(slow)) == 2, 30)
        said = prism.until(lambda: status_of(prism, slow).scaling, 30)
    assert said.startswith("1 -> 2: up: ") and "rows/s" in said
    assert traffic.outcome.ok and not traffic.outcome.failed, traffic.outcome.bodies


def test_what_another_version_needs_is_not_taken_and_status_says_so(prism, slow, tmp_path):
    prism.cli("publish", "neighbour", str(mlp_artifact(tmp_path / "a", seed=5).path))
    prism.cli("deploy", "neighbour:1", "--cpus", "0.1", "--priority", "3")
    try:
        prism.cli("deploy", f"{slow}:1", "--cpus", "5", "--min", "1", "--max", "2", timeout_s=300)
        with Traffic(prism.url(f"/v2/models/{slow}/infer"), body, workers=6) as traffic:
            held = prism.until(
                lambda: (
                    (said := status_of(prism, slow).scaling).startswith("wants 2 replicas and is granted 1") and said
                ),
                120,
            )
            traffic.wait_for(20, 60)
        assert "others need the rest" in held
        assert status_of(prism, "neighbour").replicas == 1
        assert not traffic.outcome.failed, traffic.outcome.bodies
        prism.cli("scale", f"{slow}:1", "--weight", "2", "--priority", "5")
        deploy = prism.store.read(slow).record("1").deploy
        assert (deploy.weight, deploy.priority) == (2.0, 5)
    finally:
        prism.store.remove(prism.store.read("neighbour"), by="test")
