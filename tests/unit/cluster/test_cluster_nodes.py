"""How an operator names a node, and how a node finds out that it was drained."""

import pytest

from cluster.drain import DrainWatch
from cluster.errors import InvalidRequest, StoreUnavailable
from cluster.nodes import DrainRequest, NodeReport, NodeReports, find_node
from cluster.store.memory import MemoryStore

A = NodeReport("aa11" * 14, "10.0.0.1", "alpha", head=True)
B = NodeReport("aa112" + "2" * 51, "10.0.0.2", "beta")
C = NodeReport("cc33" * 14, "10.0.0.3", "beta")


@pytest.mark.parametrize(
    ("wanted", "found"), [("10.0.0.2", B), ("alpha", A), ("aa112", B), ("cc33", C), (A.id, A), ("10.0.0.3", C)]
)
def test_a_node_is_found_by_address_name_or_the_beginning_of_its_id(wanted, found):
    assert find_node((A, B, C), wanted) is found


@pytest.mark.parametrize(
    ("wanted", "told"), [("aa11", "several"), ("beta", "several"), ("nowhere", "none"), ("cc3", "none"), ("", "none")]
)
def test_what_names_no_single_node_is_refused_with_those_there_are(wanted, told):
    with pytest.raises(InvalidRequest, match=f"names {told}.*10.0.0.2"):
        find_node((A, B, C), wanted)


def test_a_part_of_an_address_is_no_name():
    with pytest.raises(InvalidRequest, match="none"):
        find_node((A, B), "10.0.0")


@pytest.fixture
def nodes():
    return MemoryStore().nodes


def watching(nodes, node_id):
    watch = DrainWatch(nodes, period_s=3600.0)
    watch.follow(node_id)
    return watch


def test_a_node_hears_that_it_is_to_leave_and_when_it_is_empty(nodes):
    watch = watching(nodes, B.id)
    watch.look()
    assert not watch.wanted
    nodes.drain(B.id, DrainRequest("ada", 1.0))
    nodes.report(NodeReports((B,), 1.0))
    watch.look()
    assert watch.wanted and not watch.done
    nodes.report(NodeReports((NodeReport(B.id, B.address, B.name, state="DRAINED"),), 2.0))
    watch.look()
    assert watch.done


def test_the_wish_for_another_node_or_for_one_before_this_supervisor_is_nobodys(nodes):
    watch = watching(nodes, B.id)
    nodes.drain(A.id, DrainRequest("ada", 1.0))
    nodes.drain(C.id, DrainRequest("ada", 1.0))
    watch.look()
    assert not watch.wanted and set(nodes.drains()) == {A.id, C.id}


def test_the_wish_for_an_earlier_life_of_this_node_is_passed_on_to_the_present_one(nodes):
    watch = watching(nodes, B.id)
    nodes.drain(B.id, DrainRequest("ada", 1.0))
    watch.follow(C.id)  # its Ray was started again before anybody had looked
    watch.look()
    assert watch.wanted and not watch.done
    assert nodes.drains()[C.id] == DrainRequest("ada", 1.0)
    nodes.report(NodeReports((NodeReport(B.id, "", "", state="DRAINED"), C), 2.0))
    watch.look()
    assert not watch.done
    nodes.report(NodeReports((NodeReport(C.id, "", "", state="DRAINED"),), 3.0))
    watch.look()
    assert watch.done


def test_a_wish_that_was_heard_outlasts_a_new_start_of_ray(nodes):
    watch = watching(nodes, B.id)
    nodes.drain(B.id, DrainRequest("ada", 1.0))
    nodes.report(NodeReports((NodeReport(B.id, "", "", state="DRAINED"),), 1.0))
    watch.look()
    assert watch.done
    watch.follow(C.id)
    assert watch.wanted and not watch.done


def test_a_store_that_is_away_changes_nothing(nodes):
    watch = watching(nodes, B.id)
    nodes.drain(B.id, DrainRequest("ada", 1.0))
    watch.look()

    def away():
        raise StoreUnavailable("no answer")

    watch._nodes = type("Away", (), {"drains": staticmethod(away)})()
    with pytest.raises(StoreUnavailable):
        watch.look()
    assert watch.wanted
