"""A head that keeps Ray's state in a Redis of Ray's own is lost, and the next one goes on where it stopped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
import redis

from cluster.errors import StoreUnavailable
from cluster.nodes import NodeReport
from cluster.ray_storage import URL_VARIABLE
from cluster.store.embedded import EmbeddedServer
from onnx_models import mlp_artifact
from open_loop import OpenLoop
from running import Prism, free_port
from traffic import Traffic

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

HEAD, WORKER = "127.0.0.5", "127.0.0.6"


@dataclass
class Node:
    """One node of the cluster, with what its `prism up` is given."""

    prism: Prism
    options: tuple[str, ...]

    def up(self) -> None:
        self.prism.port = self.prism.json("up", *self.options)["http_port"]

    def reports(self) -> dict[str, NodeReport]:
        """Nodes by address, as the controller reports them to this head's store."""
        store = self.prism.store
        try:
            return {node.address: node for node in store.nodes.reports().nodes}
        except StoreUnavailable:
            return {}
        finally:
            store.close()

    def replicas(self) -> dict[str, int]:
        return {ip: node.replicas.get("m:1", 0) for ip, node in self.reports().items()}


@pytest.fixture
def ray_redis() -> Iterator[EmbeddedServer]:
    """A server that outlives the head, as one on another machine does."""
    with tempfile.TemporaryDirectory(prefix="prism-redis-") as folder:
        server = EmbeddedServer(Path(folder) / "data", Path(folder) / "run")
        process = server.start()
        server.wait_ready(process)
        try:
            yield server
        finally:
            process.terminate()
            process.wait()


def node(folder: Path, ip: str, cpus: int, environ: dict[str, str], *options: str) -> Node:
    settings = folder / f"{ip}.yaml"
    settings.write_text(f"ray: {{num_cpus: {cpus}}}\ngateway: {{max_deadline_s: 60}}\n")
    ports = ("--http-port", "0", "--grpc-port", str(free_port()))
    return Node(Prism(folder / ip, 0, environ), (*ports, "--node-ip", ip, "--config", str(settings), *options))


def shows(secret: str) -> list[list[str]]:
    """Command lines that hold `secret`."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(secret in word for word in line)]


def test_a_head_that_is_lost_is_continued_and_its_nodes_notice_nothing(tmp_path, ray_redis):
    """A story in one test, because each start of a cluster takes long."""
    kept = redis.Redis.from_url(ray_redis.url())
    password = ray_redis.url().split("@")[0].rpartition(":")[2]
    head = node(tmp_path, HEAD, 1, {URL_VARIABLE: ray_redis.url()})
    worker = node(tmp_path, WORKER, 2, {}, "--join", str(tmp_path / HEAD / "join.json"))
    artifact = mlp_artifact(tmp_path / "artifact", seed=1)
    session = onnxruntime.InferenceSession(str(artifact.model_path), providers=["CPUExecutionProvider"])
    rows = np.array([[i, 1.0, -2.0, 0.5] for i in range(50)], np.float32)
    truth = session.run(None, {"x": rows})[0][:, 0].astype(float)

    def body(i):
        row = rows[i % len(rows)].tolist()
        return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": row}]}, truth[i % len(rows)]

    try:
        head.up()
        worker.up()
        head.prism.cli("publish", "m", str(artifact.path))
        head.prism.cli("deploy", "m:1", "--cpus", "1", "--min", "2", "--max", "2")
        head.prism.until(lambda: sum(head.replicas().values()) == 2)
        ids = {ip: report.id for ip, report in head.reports().items()}
        replicas = worker.prism.replica_pids("m")
        record = kept.get(*kept.keys("prism:boot:*"))
        assert not shows(password)

        with (
            OpenLoop(worker.prism, tmp_path / "load") as load,
            Traffic(worker.prism.url("/v2/models/m/infer"), body, workers=4, pause_s=0.05) as traffic,
        ):
            traffic.wait_for(50)
            head.prism.kill_all()
            traffic.wait_for(50)
            assert "the cluster of the last head goes on" in head.prism.cli("up", *head.options).stdout
            head.prism.until(lambda: sum(head.replicas().values()) == 2, 90, every_s=0.5)
            traffic.wait_for(50)
        assert not traffic.outcome.failed and not traffic.outcome.wrong, traffic.outcome.bodies
        load.nothing_failed()
        now = {ip: report.id for ip, report in head.reports().items()}
        assert now[WORKER] == ids[WORKER] and now[HEAD] != ids[HEAD]
        assert replicas.items() <= worker.prism.replica_pids("m").items()
        assert kept.get(*kept.keys("prism:boot:*")) == record  # the same namespace, and it came up

        head.prism.cli("deploy", "m:1", "--cpus", "1", "--min", "3", "--max", "3")
        head.prism.until(lambda: head.replicas() == {HEAD: 1, WORKER: 2})

        worker.prism.cli("down")
        assert kept.keys("RAY*")  # a node that leaves ends nothing
        head.prism.cli("down")
        assert kept.keys("*") == []
        logs = [file for file in (tmp_path / HEAD / "logs").rglob("*") if file.is_file()]
        assert logs and not any(password.encode() in file.read_bytes() for file in logs)
    finally:
        for prism in (worker.prism, head.prism):
            prism.cli("down", check=False)
        kept.close()
