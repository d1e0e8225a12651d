from types import SimpleNamespace

from cluster.ray_head import watch

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
