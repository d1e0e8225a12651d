"""One cluster of several nodes on one machine: each node is a home of its own on an address of its own.

The tests are one story and run in order: a node joins and is drained, everything of the head is killed and brought up
again, a node is killed.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.error import URLError

import psutil
import pytest

from cluster import procs
from cluster.errors import StoreUnavailable
from cluster.home import Home
from cluster.nodes import NodeReport
from cluster.settings import BOOT_VARIABLE
from cluster.store.redis import RedisStore
from onnx_models import slow_artifact
from open_loop import OpenLoop
from running import Prism, free_port
from traffic import Traffic

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

HEAD, WORKER, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
CONNECTIONS = 4  # of the traffic with answers that are known
REQUEST_MS = 5.0  # what a request takes of a core
WORK_S = 0.2  # of a core, for dozens of requests; a replica that has nothing to do takes half a minute for it


@dataclass
class Cluster:
    folder: Path
    nodes: dict[str, Prism] = field(default_factory=dict)
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, ip: str, cpus: int, idle_gateway: bool = True) -> Prism:
        settings = self.folder / f"{ip}.yaml"
        settings.write_text(
            f"ray:\n  num_cpus: {cpus}\n  idle_gateway: {str(idle_gateway).lower()}\ngateway:\n  max_deadline_s: 120\n"
        )
        join = ("--join", str(self.head.home / "join.json")) if self.nodes else ()
        ports = ("--http-port", "0", "--grpc-port", str(free_port()))
        self.nodes[ip] = Prism(self.folder / ip, 0)
        self.options[ip] = (*ports, "--node-ip", ip, "--config", str(settings), *join)
        return self.up(ip)

    def up(self, ip: str) -> Prism:
        """Start what is down of a node."""
        prism = self.nodes[ip]
        prism.port = prism.json("up", *self.options[ip])["http_port"]
        return prism

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

    def replicas(self) -> dict[str, int]:
        """Replicas of the model by the address of their node."""
        return {ip: node.replicas.get("m:1", 0) for ip, node in self.reports().items()}

    def connected(self, ip: str) -> float:
        """Replicas that the gateway of one node is connected to; none while no gateway answers there."""
        try:
            status, text = self.nodes[ip].get("/metrics")
        except OSError:
            return 0.0
        lines = [line for line in text.decode().splitlines() if line.startswith("prism_replicas{")]
        found = [float(line.rpartition(" ")[2]) for line in lines if 'model="m"' in line]
        return found[0] if status == 200 and found else 0.0

    def url(self, ip: str) -> str:
        return self.nodes[ip].url("/v2/models/m/infer")

    def traffic(self, ip: str, instead: str = "", workers: int = CONNECTIONS, pause_s: float = 0.05) -> Traffic:
        """Requests with answers that are known."""
        return Traffic(self.url(ip), body, workers=workers, pause_s=pause_s, instead=instead, timeout_s=120)

    def all_compute_for(self, ip: str) -> None:
        """Every replica, wherever it is, computes what clients ask of one node's gateway."""
        replicas = [psutil.Process(pid) for node in self.nodes.values() for pid in node.replica_pids("m").values()]
        before_s = [replica.cpu_times().user for replica in replicas]

        def all_did() -> bool:
            now_s = [replica.cpu_times().user for replica in replicas]
            return all(now - before > WORK_S for now, before in zip(now_s, before_s, strict=True))

        with self.traffic(ip, workers=4 * len(replicas), pause_s=0.0) as traffic:
            self.head.until(all_did, 10)
        answers_are_right(traffic)


def body(i: int) -> tuple[dict, float]:
    value = float(i % 50)
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value, 1.0, -2.0, 0.5]}]}, value


@pytest.fixture(scope="module")
def cluster():
    with tempfile.TemporaryDirectory(prefix="prism-nodes-") as folder:
        made = Cluster(Path(folder))
        try:
            made.add(HEAD, cpus=2)
            made.add(WORKER, cpus=1)
            artifact = slow_artifact(made.folder / "artifact", REQUEST_MS, max_rows=1)
            made.head.cli("publish", "m", str(artifact.path))
            yield made
        finally:
            for prism in reversed(made.nodes.values()):
                prism.cli("down", check=False)
            if "store" in vars(made):  # else nobody has asked for it, and a head that is down has none
                made.store.close()


def process_of(prism: Prism, words: tuple[str, ...]) -> psutil.Process:
    """The one Ray worker of a home's node whose command line holds all `words`."""
    boot = str(Home(prism.home).boot_file)
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


def tcp_between(gateway: psutil.Process, replica: psutil.Process, node_ip: str) -> int:
    """How many TCP connections a gateway holds to where a replica listens for other nodes."""
    ports = {
        c.laddr.port for c in replica.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.ip == node_ip
    }
    held = [c for c in gateway.net_connections("tcp") if c.raddr and c.status == psutil.CONN_ESTABLISHED]
    return sum(c.raddr.port in ports for c in held)


def answers_are_right(traffic: Traffic) -> None:
    assert not traffic.outcome.wrong
    assert not traffic.outcome.failed, traffic.outcome.bodies


def each_connection_broke_once(traffic: Traffic) -> None:
    """At most: and no answer was wrong, or an error."""
    assert not traffic.outcome.wrong
    broken = traffic.outcome.failed
    assert all(isinstance(kind, str) for kind in broken), traffic.outcome.bodies
    assert sum(broken.values()) <= CONNECTIONS, broken


def refuses(prism: Prism) -> bool:
    """Whether nobody takes connections at a node's port any more."""
    try:
        prism.get("/-/healthz")
    except (URLError, ConnectionError) as error:
        return "refused" in str(error)
    return False


def test_replicas_spread_and_each_gateway_uses_all_those_of_its_node_by_unix_socket_and_others_by_tcp(cluster):
    cluster.head.cli("deploy", "m:1", "--cpus", "0.5", "--min", "2", "--max", "2")
    cluster.head.until(lambda: sum(cluster.replicas().values()) == 2)
    assert cluster.replicas() == {HEAD: 1, WORKER: 1}  # each has room for both
    for ip in (HEAD, WORKER):
        cluster.head.until(lambda ip=ip: cluster.connected(ip) == 2)
        cluster.all_compute_for(ip)
    nodes = cluster.nodes
    gateways = {ip: process_of(nodes[ip], ("ServeReplica", "gateway")) for ip in nodes}
    replicas = {ip: process_of(nodes[ip], ("ServeReplica", "model:m:1")) for ip in nodes}
    held = {(here, ip): tcp_between(gateways[here], replicas[ip], ip) for here in nodes for ip in nodes}
    assert held == {(HEAD, HEAD): 0, (HEAD, WORKER): 1, (WORKER, HEAD): 1, (WORKER, WORKER): 0}


def test_a_node_that_joins_under_load_is_used_and_has_a_gateway_only_while_it_has_replicas(cluster, tmp_path):
    with OpenLoop(cluster.head, tmp_path / "load") as load:
        third = cluster.add(THIRD, cpus=1, idle_gateway=False)
        node = cluster.head.until(lambda: cluster.reports().get(THIRD))
        assert (node.state, node.gateway, node.replicas) == ("UP", "", {})
        cluster.head.cli("scale", "m:1", "--min", "5", "--max", "5")
        cluster.head.until(lambda: sum(cluster.replicas().values()) == 5)
        assert cluster.replicas() == {HEAD: 2, WORKER: 2, THIRD: 1}  # the head has room for all that came
        third.until(lambda: cluster.reports()[THIRD].gateway == "RUNNING" and cluster.connected(THIRD) == 5)
    load.nothing_failed()
    for ip in (HEAD, THIRD):
        cluster.all_compute_for(ip)


def test_a_drained_node_loses_no_request_of_anybody_and_takes_itself_down(cluster, tmp_path):
    refused = cluster.head.cli("drain", HEAD, check=False)
    assert refused.returncode == 1 and "is the head" in refused.stderr
    third = cluster.nodes[THIRD]
    with (
        OpenLoop(cluster.head, tmp_path / "head") as head,
        OpenLoop(third, tmp_path / "third") as own,
        cluster.traffic(THIRD) as traffic,
    ):
        assert cluster.head.json("drain", THIRD, "--no-wait")["state"] == "DRAINING"
        third.until(lambda: third.get("/-/healthz")[0] == 503)
        seen_s = time.monotonic()
        own.stop()  # as a load balancer does that saw it
        traffic.wait_for(20)  # and whoever still comes is answered
        traffic.url = cluster.url(HEAD)
        third.until(lambda: refuses(third))
        failing_s = time.monotonic() - seen_s
        cluster.head.until(lambda: cluster.replicas().get(HEAD) == 3)
        traffic.wait_for(20)
    answers_are_right(traffic)
    for load in (head, own):
        load.nothing_failed()
    assert failing_s > 4, "load balancers are to see for 5 seconds that the node leaves"
    home = Home(third.home)
    cluster.head.until(lambda: home.running() is None and not procs.find_marked(home.key), 30)
    cluster.head.until(lambda: cluster.replicas() == {HEAD: 3, WORKER: 2})
    assert HEAD in cluster.head.cli("status").stdout


def test_when_the_head_dies_the_other_node_answers_and_all_is_rebuilt_from_the_store(cluster, tmp_path):
    ids = {node.id for node in cluster.reports().values()}
    boot = cluster.head.boot
    with OpenLoop(cluster.nodes[WORKER], tmp_path / "load") as load, cluster.traffic(WORKER) as traffic:
        traffic.wait_for(50)
        cluster.head.kill_all()
        traffic.wait_for(200)
        assert not traffic.outcome.failed, traffic.outcome.bodies
        cluster.up(HEAD)

        def rebuilt():
            now = cluster.reports()
            return (
                set(now) == {HEAD, WORKER}
                and not ids & {node.id for node in now.values()}
                and sum(cluster.replicas().values()) == 5  # for which the head has no room
                and cluster.connected(WORKER) == 5
            )

        cluster.head.until(rebuilt, 150, every_s=0.5)
        traffic.wait_for(100, timeout_s=60)
    assert cluster.head.boot.ray_address == boot.ray_address
    # The gateway that ended with the old node took its open connections along.
    each_connection_broke_once(traffic)
    load.broke_once()
    assert str(cluster.store.read("m").split) == "1=100"


def test_a_node_that_dies_under_load_fails_its_own_connections_once_and_no_request_of_another_gateway(
    cluster, tmp_path
):
    with (
        OpenLoop(cluster.head, tmp_path / "load") as load,
        cluster.traffic(HEAD, workers=8, pause_s=0.0) as others,  # all replicas have work when one of them dies
        cluster.traffic(WORKER, instead=cluster.url(HEAD)) as own,
    ):
        for traffic in (others, own):
            traffic.wait_for(50)
        cluster.nodes[WORKER].kill_all()
        for traffic in (others, own):
            traffic.wait_for(100)
        cluster.head.until(lambda: set(cluster.reports()) == {HEAD}, 90)
    answers_are_right(others)
    each_connection_broke_once(own)
    assert own.outcome.failed, "the node's own clients were to be there when it died"
    load.nothing_failed()
