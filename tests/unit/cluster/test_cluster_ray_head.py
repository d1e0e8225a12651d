import socket
from types import SimpleNamespace

import pytest

from cluster.errors import OperatorError
from cluster.home import Home
from cluster.ray_head import check_port, watch
from cluster.settings import RaySettings

DEAD = SimpleNamespace(returncode=1)


class Node:
    """Parts that die at a given look; an autoscaler that is started again lives."""

    def __init__(self, deaths):
        self.deaths, self.looks, self.started = deaths, 0, 0
        self.all_processes = {"raylet": [], "monitor": []}
        self._dead = {}

    def dead_processes(self):
        self._dead |= {kind: DEAD for kind, look in self.deaths if look == self.looks}
        self.looks += 1
        return list(self._dead.items())

    def start_monitor(self):
        assert "monitor" not in self.all_processes  # as Ray itself insists
        self.all_processes["monitor"] = []
        self._dead.pop("monitor")
        self.started += 1


def test_a_node_ends_with_any_part_that_it_cannot_do_without():
    node = Node([("raylet", 3)])
    assert watch(node, lambda _: None) == [("raylet", DEAD)]
    assert node.started == 0


def test_an_autoscaler_that_ends_is_started_again_and_the_node_goes_on():
    node = Node([("monitor", 1), ("gcs_server", 9)])
    assert watch(node, lambda _: None) == [("gcs_server", DEAD)]
    assert node.started == 1 and node.looks == 10


def test_an_autoscaler_that_ends_at_once_again_is_not_started_all_the_time():
    node = Node([("monitor", 1), ("monitor", 2), ("gcs_server", 20)])
    assert watch(node, lambda _: None) == [("gcs_server", DEAD)]
    assert node.started == 1


def test_a_heads_port_that_is_taken_is_one_line_with_the_way_out(tmp_path):
    home = Home(tmp_path)
    check_port(home, RaySettings())
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            OperatorError, match=rf"ray\.port: cannot listen on 127\.0\.0\.2:{port}: .*settings, ray\.port"
        ):
            check_port(home, RaySettings(node_ip="127.0.0.2", port=port))
        home.ray_port_file.write_text(str(port))
        with pytest.raises(OperatorError, match=r"delete .*ray-port and hand out the new join\.json"):
            check_port(home, RaySettings(node_ip="127.0.0.2"))
        check_port(home, RaySettings(node_ip="127.0.0.1"))  # no other node knows a port of it
    check_port(home, RaySettings(node_ip="127.0.0.2"))
