"""A node as Ray describes it, read."""

from cluster.ray_head import ALWAYS, DOOR_LABEL, GATEWAY_LABEL, WITH_REPLICAS
from deployments.nodes import TIMEOUT_S, Nodes, _seen

RAY = {
    "NodeID": "ab" * 28,
    "NodeManagerAddress": "10.0.0.2",
    "NodeManagerHostname": "beta",
    "Resources": {
        "CPU": 4.0, "GPU": 1.0, "memory": 8e9, "object_store_memory": 2e8, "node:10.0.0.2": 1.0,
        "accelerator_type:A100": 1.0, "licence": 2.0,
    },
    "Labels": {DOOR_LABEL: "8000", GATEWAY_LABEL: ALWAYS},
}  # fmt: skip


def seen(changes=None, available=None, draining=False):
    return _seen({**RAY, **(changes or {})}, {"m:1": 1}, available or {}, draining)


def test_what_the_node_can_give_is_shown_without_what_ray_counts_for_itself():
    node = seen(available={"CPU": 1.0, "memory": 8e9, "licence": 2.0})
    assert node.total == {"CPU": 4.0, "GPU": 1.0, "memory": 8e9, "licence": 2.0}
    assert node.available == {"CPU": 1.0, "GPU": 0.0, "memory": 8e9, "licence": 2.0}  # Ray leaves out what is used up
    assert (node.address, node.name, node.replicas) == ("10.0.0.2", "beta", {"m:1": 1})


def test_a_node_that_has_not_told_its_use_yet_counts_as_unused():
    assert seen().available == seen().total


def test_labels_say_whether_there_is_a_door_and_when_a_gateway_belongs_there():
    assert (seen().door_port, seen().idle_gateway) == (8000, True)
    assert seen({"Labels": {DOOR_LABEL: "1", GATEWAY_LABEL: WITH_REPLICAS}}).idle_gateway is False
    assert seen({"Labels": {**RAY["Labels"], "pool": "red"}}).labels == {"pool": "red"}  # ours select nothing
    for labels in ({}, None, {DOOR_LABEL: "no port"}):
        assert seen({"Labels": labels}).door_port == 0


def test_the_head_is_known_by_rays_own_mark():
    assert not seen().head
    assert seen({"Resources": {"CPU": 1.0, "node:__internal_head__": 1.0}}).head
    assert seen(draining=True).draining


class Head:
    """Ray's head as `Nodes` asks it to drain."""

    def __init__(self, answer):
        self.answer = answer
        self.timeouts = []

    def drain_node(self, node_id, reason, message, deadline_ms, timeout=None):
        self.timeouts.append(timeout)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def drained(answer):
    nodes = object.__new__(Nodes)
    nodes._gcs = head = Head(answer)
    told = nodes.drain("ab")
    assert head.timeouts == [TIMEOUT_S]  # without one, a head that hangs would stop the controller
    return told


def test_a_drain_says_why_it_is_refused_and_a_node_that_cannot_be_asked_stops_nobody():
    assert drained((True, "")) == ""
    assert drained((False, "busy")) == "busy"
    assert drained((False, "")) == "Ray gives no reason"
    assert drained(RuntimeError("unreachable")) == "RuntimeError: unreachable"
