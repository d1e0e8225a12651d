"""One cluster of several nodes on one machine: each node is a home of its own on an address of its own.

The tests are one story and run in order: nodes join, one is killed, the head's Ray is killed, one is drained.
"""

from __future__ import annotations

import os
import signal
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest

from cluster import procs
from cluster.errors import StoreUnavailable
from cluster.home import Home
from cluster.nodes import NodeReport
from cluster.settings import BOOT_VARIABLE
from cluster.store.redis import RedisStore
from onnx_models import mlp_artifact
from open_loop import OpenLoop
from running import Prism, free_port
from traffic import Traffic

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

HEAD, WORKER, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
WORKERS = 4  # connections of the traffic


@dataclass
class Cluster:
    folder: Path
    truth: np.ndarray = field(init=False)
    nodes: dict[str, Prism] = field(default_factory=dict)

    def add(self, ip: str, cpus: int, idle_gateway: bool = True) -> Prism:
        made = Prism(self.folder / ip, 0)
        settings = self.folder / f"{ip}.yaml"
        settings.write_text(
            f"ray:\n  num_cpus: {cpus}\n  idle_gateway: {str(idle_gateway).lower()}\ngateway:\n  max_deadline_s: 60\n"
        )
        join = ["--join", str(self.head.home / "join.json")] if self.nodes else []
        self.nodes[ip] = made
        ports = ("--http-port", "0", "--grpc-port", str(free_port()))
        made.port = made.json("up", *ports, "--node-ip", ip, "--config", str(settings), *join)["http_port"]
        return made

    @property
    def head(self) -> Prism:
        return self.nodes[HEAD]

    @cached_property
    def store(self) -> RedisStore:
        return RedisStore(self.head.boot.store_url)

    def reports(self) -> dict[str, NodeReport]:
        """Nodes by address, as the controller reports them; none while the store is being restarted."""
        try:
            return {node.address: node for node in self.store.nodes.reports().nodes}
        except StoreUnavailable:
            return {}

    def replicas(self, model: str = "m") -> dict[str, int]:
        """Replicas of `model` by the address of their node."""
        return {ip: node.replicas.get(f"{model}:1", 0) for ip, node in self.reports().items()}

    def connected(self, prism: Prism, model: str = "m") -> float:
        """Replicas that the gateway of one node is connected to."""
        status, text = prism.get("/metrics")
        lines = [line for line in text.decode().splitlines() if line.startswith("prism_replicas{")]
        found = [float(line.rpartition(" ")[2]) for line in lines if f'model="{model}"' in line]
        return found[0] if status == 200 and found else 0.0

    def traffic(self, ip: str, model: str = "m") -> Traffic:
        def body(i):
            value = i % len(self.truth)
            data = [float(value), 1.0, -2.0, 0.5]
            return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": data}]}, self.truth[value]

        return Traffic(self.nodes[ip].url(f"/v2/models/{model}/infer"), body, workers=WORKERS, pause_s=0.01)


@pytest.fixture(scope="module")
def cluster():
    with tempfile.TemporaryDirectory(prefix="prism-nodes-") as folder:
        made = Cluster(Path(folder))
        try:
            made.add(HEAD, cpus=2)
            made.add(WORKER, cpus=1)
            artifact = mlp_artifact(made.folder / "artifact", seed=1)
            session = onnxruntime.InferenceSession(str(artifact.model_path), providers=["CPUExecutionProvider"])
            rows = np.array([[i, 1.0, -2.0, 0.5] for i in range(50)], np.float32)
            made.truth = session.run(None, {"x": rows})[0][:, 0].astype(float)
            for model in ("m", "alone"):
                made.head.cli("publish", model, str(artifact.path))
            yield made
        finally:
            for prism in reversed(made.nodes.values()):
                prism.cli("down", check=False)
            if "store" in vars(made):  # else nobody has asked for it, and a head that is down has none
                made.store.close()


def process_of(home: Path, words: tuple[str, ...]) -> psutil.Process:
    """The one Ray worker of a home's node whose command line holds all `words`."""
    boot = str(Home(home).boot_file)
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        try:
            if all(word in line for word in words) and process.environ().get(BOOT_VARIABLE) == boot:
                found.append(process)
        except psutil.Error:
            continue
    assert len(found) == 1, f"{words}: {found}"
    return found[0]


def tcp_to(process: psutil.Process, ports: set[int]) -> int:
    """How many TCP connections a process holds to `ports`."""
    return sum(
        bool(c.raddr) and c.raddr.port in ports and c.status == psutil.CONN_ESTABLISHED
        for c in process.net_connections("tcp")
    )


def nothing_failed(load: OpenLoop) -> None:
    counts = load.counts
    assert counts.failed == 0 and counts.answered > counts.dropped, counts  # a generator that is late drops some itself


def answers_are_right(traffic: Traffic) -> None:
    assert not traffic.outcome.wrong
    assert not traffic.outcome.failed, traffic.outcome.bodies


def test_a_gateway_reaches_a_replica_of_its_node_by_unix_socket_and_of_another_by_tcp(cluster):
    cluster.head.cli("deploy", "alone:1", "--cpus", "0.1", "--max", "1")
    cluster.head.until(lambda: sum(cluster.replicas("alone").values()) == 1)
    (here,) = [ip for ip, count in cluster.replicas("alone").items() if count]
    (there,) = {HEAD, WORKER} - {here}
    for ip in (here, there):
        cluster.nodes[ip].until(lambda ip=ip: cluster.connected(cluster.nodes[ip], "alone") == 1)
        with cluster.traffic(ip, "alone") as traffic:
            traffic.wait_for(50)
        answers_are_right(traffic)
    replica = process_of(cluster.nodes[here].home, ("ServeReplica", "alone"))
    node_ip = cluster.nodes[here].boot.node_ip
    ports = {
        c.laddr.port for c in replica.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.ip == node_ip
    }
    gateways = {ip: process_of(cluster.nodes[ip].home, ("ServeReplica", "gateway")) for ip in (here, there)}
    assert (tcp_to(gateways[here], ports), tcp_to(gateways[there], ports)) == (0, 1)
    cluster.head.cli("undeploy", "alone:1", "--force")


def test_every_gateway_uses_the_replicas_of_every_node(cluster):
    cluster.head.cli("deploy", "m:1", "--cpus", "1", "--min", "3", "--max", "3")
    cluster.head.until(lambda: cluster.replicas() == {HEAD: 2, WORKER: 1})
    for ip in (HEAD, WORKER):
        cluster.nodes[ip].until(lambda ip=ip: cluster.connected(cluster.nodes[ip]) == 3)
        with cluster.traffic(ip) as traffic:
            traffic.wait_for(100)
        answers_are_right(traffic)


def test_a_node_that_joins_is_used_and_has_a_gateway_only_while_it_has_replicas(cluster):
    third = cluster.add(THIRD, cpus=1, idle_gateway=False)
    node = cluster.head.until(lambda: cluster.reports().get(THIRD))
    assert (node.state, node.gateway, node.replicas) == ("UP", "", {})
    with cluster.traffic(HEAD) as traffic:
        cluster.head.cli("scale", "m:1", "--min", "4", "--max", "4")
        cluster.head.until(lambda: cluster.replicas() == {HEAD: 2, WORKER: 1, THIRD: 1})
        traffic.wait_for(50)
    answers_are_right(traffic)
    third.until(lambda: cluster.reports()[THIRD].gateway == "RUNNING" and cluster.connected(third) == 4)
    with cluster.traffic(THIRD) as traffic:
        traffic.wait_for(50)
    answers_are_right(traffic)


def test_a_node_that_dies_under_load_fails_no_request_of_another_gateway(cluster, tmp_path):
    home = Home(cluster.nodes[THIRD].home)
    state = home.supervisor()
    with OpenLoop(cluster.head, tmp_path / "load") as load, cluster.traffic(HEAD) as traffic:
        traffic.wait_for(100)
        for process in procs.find_marked(home.key, (procs.Identity(state.pid, state.started_s), *state.leaders)):
            process.kill()
        traffic.wait_for(200)
        cluster.head.until(lambda: set(cluster.reports()) == {HEAD, WORKER}, 90)
        cluster.head.cli("scale", "m:1", "--min", "3", "--max", "3")
        traffic.wait_for(50)
    answers_are_right(traffic)
    nothing_failed(load)


def test_when_the_head_dies_the_other_node_answers_and_all_is_rebuilt_from_the_store(cluster):
    ids = {node.id for node in cluster.reports().values()}
    boot = cluster.head.boot
    ray_node = Home(cluster.head.home).supervisor().leaders[1]
    with cluster.traffic(WORKER) as traffic:
        traffic.wait_for(50)
        os.kill(ray_node.pid, signal.SIGKILL)
        traffic.wait_for(200)  # the store and Serve's controller are away or busy, the answers are not
        assert not traffic.outcome.failed, traffic.outcome.bodies

        def rebuilt():
            now = cluster.reports()
            return (
                set(now) == {HEAD, WORKER}
                and not ids & {node.id for node in now.values()}
                and cluster.replicas() == {HEAD: 2, WORKER: 1}
                and cluster.connected(cluster.nodes[WORKER]) == 3
            )

        cluster.head.until(rebuilt, 150, every_s=0.5)
        traffic.wait_for(100, timeout_s=60)
    assert cluster.head.boot.ray_address == boot.ray_address
    assert not traffic.outcome.wrong
    broken = traffic.outcome.failed  # of the gateway that ended with the old node: its open connections, once
    assert all(isinstance(kind, str) for kind in broken), traffic.outcome.bodies
    assert sum(broken.values()) <= WORKERS, broken
    assert str(cluster.head.store.read("m").split) == "1=100"


def test_a_drained_node_loses_no_request_and_takes_itself_down(cluster, tmp_path):
    refused = cluster.head.cli("drain", HEAD, check=False)
    assert refused.returncode == 1 and "is the head" in refused.stderr
    cluster.head.cli("scale", "m:1", "--min", "2", "--max", "2")
    cluster.head.until(lambda: sum(cluster.replicas().values()) == 2)
    with OpenLoop(cluster.head, tmp_path / "load") as load, cluster.traffic(HEAD) as traffic:
        traffic.wait_for(50)
        assert cluster.head.json("drain", WORKER)["state"] == "DRAINED"
        cluster.head.until(lambda: cluster.replicas().get(HEAD) == 2)
        traffic.wait_for(50)
    answers_are_right(traffic)
    nothing_failed(load)
    home = Home(cluster.nodes[WORKER].home)
    cluster.head.until(lambda: home.running() is None and not procs.find_marked(home.key), 30)
    cluster.head.until(lambda: set(cluster.reports()) == {HEAD})
    assert HEAD in cluster.head.cli("status").stdout
