"""Ray's autoscaler adds a node when load needs one, and removes it when the load has gone.

Ray's fake provider stands for a cloud: it starts another raylet on this machine, below the autoscaler's process and so
with the home's mark, by which `prism down` finds it. The node shares the head's home and door.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from cluster import procs
from cluster.documents import VersionStatus
from cluster.home import Home
from cluster.nodes import NodeReport
from cluster.ray_head import DOOR_LABEL, GATEWAY_LABEL, WITH_REPLICAS
from onnx_models import slow_artifact
from open_loop import OpenLoop
from running import Prism, free_port
from traffic import Traffic

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

HEAD_IP = "127.0.0.5"
ADDED_IP = "127.0.0.1"  # the fake provider knows no other
HEAD_TYPE, WORKER_TYPE = "ray.head.default", "worker"
HEAD_ID = "f" * 51 + "0" * 5  # what the fake provider calls the head
ENVIRON = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",  # this and the next two as `ray up` has them on a head
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


def provider_config(gcs_port: int, http_port: int, most: int) -> dict:
    """What Ray's cluster launcher would put on the head, for at most `most` nodes besides it."""
    return {
        "cluster_name": "fake",
        "max_workers": 1,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 1.0,
        "provider": {
            # By its module: Ray's wheel lacks the file of defaults that `type: fake_multinode` reads.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"{HEAD_IP}:{gcs_port}",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_launch_config_check": True,
            "disable_node_updaters": True,
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            WORKER_TYPE: {
                "resources": {"CPU": 1},
                "labels": {DOOR_LABEL: str(http_port), GATEWAY_LABEL: WITH_REPLICAS},
                "node_config": {},
                "min_workers": 0,
                "max_workers": most,
            },
        },
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
        **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
        **{name: [] for name in ("cluster_synced_files", "initialization_commands", "rsync_exclude", "rsync_filter")},
    }


@dataclass
class Elastic:
    """A Prism on one CPU whose cluster may grow by one node once `allow` says so."""

    prism: Prism
    config: Path
    gcs_port: int

    def allow(self, nodes: int) -> None:
        """Ray's autoscaler reads the file again at each of its updates."""
        written = self.config.with_suffix(".new")
        written.write_text(yaml.safe_dump(provider_config(self.gcs_port, self.prism.port, nodes)))
        written.replace(self.config)

    @property
    def nodes(self) -> dict[str, NodeReport]:
        return {node.address: node for node in self.prism.store.nodes.reports().nodes}

    def added(self) -> NodeReport | None:
        return self.nodes.get(ADDED_IP)

    def status(self) -> VersionStatus:
        return self.prism.store.statuses("m")["1"]

    def autoscaler(self) -> psutil.Process:
        """Ray's autoscaler, with which nodes come and go."""
        marked = procs.find_marked(Home(self.prism.home).key)
        (found,) = [process for process in marked if any("monitor.py" in word for word in process.cmdline())]
        return found

    def raylet(self, ip: str) -> psutil.Process | None:
        """The node's own process; None if there is none."""
        found = []
        for process in procs.find_marked(Home(self.prism.home).key):
            try:
                words = process.cmdline()
            except psutil.Error:  # it has just ended
                continue
            if "raylet/raylet" in " ".join(words) and f"--node_ip_address={ip}" in words:
                found.append(process)
        assert len(found) <= 1
        return found[0] if found else None

    def worker(self, ip: str, name: str) -> psutil.Process:
        """The one Serve replica of an application on a node."""
        raylet = self.raylet(ip)
        assert raylet is not None
        lines = [(child, " ".join(child.cmdline())) for child in raylet.children()]
        (found,) = [child for child, line in lines if "ServeReplica" in line and name in line]
        return found


@pytest.fixture
def elastic():
    with tempfile.TemporaryDirectory(prefix="prism-elastic-") as name:
        folder = Path(name)
        prism = Prism(folder / "home", free_port(), ENVIRON)
        made = Elastic(prism, folder / "cluster.yaml", free_port())
        made.allow(nodes=0)
        ray = {"num_cpus": 1, "node_ip": HEAD_IP, "port": made.gcs_port, "autoscaling_config": str(made.config)}
        settings = folder / "settings.yaml"
        settings.write_text(yaml.safe_dump({"ray": ray, "gateway": {"max_deadline_s": 60}}))
        ports = ("--http-port", str(prism.port), "--grpc-port", str(free_port()))
        try:
            prism.cli("up", *ports, "--config", str(settings))
            prism.cli("publish", "m", str(slow_artifact(folder / "artifact", 20, max_rows=1).path))
            yield made
        finally:
            prism.cli("down", check=False)
            left = procs.stop_marked(Home(prism.home).key, 1.0)
        assert left == 0, "prism down left processes of a node that Ray's autoscaler had added"


def body(i: int) -> tuple[dict, float]:
    value = float(i % 50)
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value, 1.0, 2.0, 3.0]}]}, value


def wire_connections(gateway: psutil.Process, replica: psutil.Process) -> int:
    """TCP connections that a gateway holds to where a replica listens for other nodes: at the home's own address."""
    ports = [c.laddr for c in replica.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    listening = {address for address in ports if address.ip == HEAD_IP}
    held = [c.raddr for c in gateway.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
    return sum(address in listening for address in held)


def test_a_node_comes_with_load_takes_its_part_over_tcp_and_goes_with_the_load(elastic, tmp_path):
    prism = elastic.prism
    prism.cli("deploy", "m:1", "--cpus", "1", "--memory", "0", "--min", "1", "--max", "2", "--down-after", "1")
    assert set(elastic.nodes) == {HEAD_IP}
    listening = [c for c in elastic.autoscaler().net_connections() if c.status == psutil.CONN_LISTEN]
    assert not listening, "two homes would meet there, and anybody may ask"
    with (
        OpenLoop(prism, tmp_path / "load", rate=10, p99="30s") as load,
        Traffic(prism.url("/v2/models/m/infer"), body, workers=6) as traffic,  # as much as there is room for
    ):
        prism.until(lambda: elastic.status().pending == 1, 60)
        assert "1 replica waits: no node has 1 CPU free" in elastic.status().reason
        elastic.allow(nodes=1)
        prism.until(lambda: elastic.status().replicas == 2 and not elastic.status().pending, 60)
        assert elastic.added().replicas == {"m:1": 1}
        replica = elastic.worker(ADDED_IP, "m:1")
        gateway = elastic.worker(HEAD_IP, "gateway")
        prism.until(lambda: wire_connections(gateway, replica) == 1, 20)
        before_s = replica.cpu_times().user
        traffic.wait_for(150, 60)
        assert replica.cpu_times().user - before_s > 0.2  # at 20 ms a request
        # The node's own gateway comes with its first replica. Here both nodes answer at the one door there is.
        prism.until(lambda: elastic.added().gateway == "RUNNING", 40)
        traffic.wait_for(50, 60)
    assert not traffic.outcome.wrong
    assert not traffic.outcome.failed, traffic.outcome.bodies
    load.nothing_failed()

    prism.until(lambda: elastic.status().replicas == 1 and not elastic.added().replicas, 90)
    assert elastic.added().gateway == "RUNNING"  # and yet the node goes
    prism.until(lambda: set(elastic.nodes) == {HEAD_IP}, 90)
    prism.until(lambda: elastic.raylet(ADDED_IP) is None, 20)
    assert elastic.raylet(HEAD_IP) is not None
    assert prism.get("/v2/models/m/ready")[0] == 200
