"""Replicas follow load on a real Prism. How versions share what is too little: test_integration_resources."""

from __future__ import annotations

import pytest

from loadtest.bench.work import prepare, write_artifact
from loadtest.scaling_live import SLOW
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
