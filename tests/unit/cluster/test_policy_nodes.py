"""Which nodes have a gateway, which are drained, and what is reported of each."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.nodes import DrainRequest
from cluster.policy.nodes import (
    LEAVE_S,
    LINGER_S,
    REMEMBER_DRAIN_S,
    RETRY_S,
    DrainPlan,
    NodeMemory,
    NodeSeen,
    after_drain_refused,
    node_reports,
    plan_drains,
    plan_gateways,
)


def node(id="a", **changes):
    return NodeSeen(**{"id": id, "address": f"10.0.0.{id}", "name": f"host-{id}", "door_port": 8000} | changes)


def seen(*nodes):
    return {each.id: each for each in nodes}


def decided(nodes, gateways=None, memory=None, now_s=0.0):
    plan = plan_gateways(seen(*nodes), gateways or {}, memory or {}, now_s)
    return plan.run, plan.delete, plan.memory


def test_every_node_with_a_door_gets_a_gateway_and_keeps_it():
    nodes = (node("a", head=True), node("b"), node("c", door_port=0))
    assert decided(nodes)[:2] == (("a", "b"), ())
    assert decided(nodes, {"a": "RUNNING", "b": "DEPLOYING"})[:2] == ((), ())


def test_the_gateway_of_a_node_that_has_left_goes_and_is_not_deleted_twice():
    assert decided((node("a"),), {"a": "RUNNING", "gone": "UNHEALTHY"})[1] == ("gone",)
    assert decided((node("a"),), {"a": "RUNNING", "gone": "DELETING"})[1] == ()


def test_a_draining_node_gets_no_gateway_and_loses_its_own_once_balancers_have_had_time():
    draining = node("b", draining=True, replicas={"m:1": 2})
    run, delete, memory = decided((draining,), {"b": "RUNNING"}, {}, 10.0)
    assert (run, delete) == ((), ())
    _, delete, memory = decided((draining,), {"b": "RUNNING"}, memory, 9.9 + LEAVE_S)
    assert delete == ()
    assert decided((draining,), {"b": "RUNNING"}, memory, 10.0 + LEAVE_S)[1] == ("b",)
    assert decided((draining,), {"b": "DELETING"}, memory, 11.0 + LEAVE_S)[1] == ()
    assert decided((draining,), {}, memory, 12.0 + LEAVE_S)[0] == ()


def test_a_node_that_may_be_taken_away_has_a_gateway_only_with_replicas_and_for_a_while_after():
    idle, busy = node("b", idle_gateway=False), node("b", idle_gateway=False, replicas={"m:1": 1})
    run, _, memory = decided((idle,), now_s=1000.0)
    assert run == ()
    run, _, memory = decided((busy,), {}, memory, 1001.0)
    assert run == ("b",)
    run, delete, memory = decided((idle,), {"b": "RUNNING"}, memory, 1001.0 + LINGER_S)
    assert (run, delete) == ((), ())
    assert decided((idle,), {"b": "RUNNING"}, memory, 1001.1 + LINGER_S)[1] == ("b",)


def test_a_head_keeps_its_gateway_whatever_its_label_says():
    assert decided((node("a", head=True, idle_gateway=False),))[0] == ("a",)


def test_a_gateway_that_failed_is_deleted_after_a_while_and_run_again_once_it_is_gone():
    nodes = (node("a"),)
    _, delete, memory = decided(nodes, {"a": "DEPLOY_FAILED"}, {}, 50.0)
    assert delete == ()
    _, delete, memory = decided(nodes, {"a": "DEPLOY_FAILED"}, memory, 49.9 + RETRY_S)
    assert delete == ()
    run, delete, memory = decided(nodes, {"a": "DEPLOY_FAILED"}, memory, 50.0 + RETRY_S)
    assert (run, delete) == ((), ("a",))
    assert decided(nodes, {"a": "DELETING"}, memory, 51.0 + RETRY_S)[:2] == ((), ())
    run, _, memory = decided(nodes, {}, memory, 52.0 + RETRY_S)
    assert run == ("a",)
    assert decided(nodes, {"a": "DEPLOY_FAILED"}, memory, 53.0 + RETRY_S)[1] == ()  # counted anew


def test_nothing_is_remembered_of_nodes_that_have_left():
    assert set(decided((node("a"),), {}, {"gone": NodeMemory(1.0)})[2]) == {"a"}


ids = st.sampled_from("abcd")
statuses = st.dictionaries(ids, st.sampled_from(["RUNNING", "DEPLOYING", "DEPLOY_FAILED", "DELETING", "UNHEALTHY"]))
nodes_seen = st.dictionaries(
    ids,
    st.builds(
        NodeSeen,
        id=ids,
        address=st.just("10.0.0.1"),
        name=st.just("host"),
        head=st.booleans(),
        door_port=st.sampled_from([0, 8000]),
        idle_gateway=st.booleans(),
        draining=st.booleans(),
        replicas=st.sampled_from([{}, {"m:1": 1}]),
    ),
)


@given(nodes_seen, statuses, st.floats(0, 1e6))
def test_a_gateway_is_run_only_where_there_is_none_and_deleted_only_where_there_is_one(nodes, gateways, now_s):
    plan = plan_gateways(nodes, gateways, {}, now_s)
    assert not set(plan.run) & set(gateways)
    assert all(gateways.get(id) not in (None, "DELETING") for id in plan.delete)
    assert all(nodes[id].door_port and not nodes[id].draining for id in plan.run)
    assert len(plan.delete) == len(set(plan.delete))


WISH = DrainRequest("ada", 1000.0)


def drains(nodes, wishes, refusals=None, now_s=0.0, time_s=1001.0):
    return plan_drains(nodes, wishes, refusals or {}, now_s, time_s)


def test_a_node_is_drained_once_and_a_head_or_an_unknown_node_never():
    nodes = seen(node("a", head=True), node("b"), node("c", draining=True))
    assert drains(nodes, dict.fromkeys("abcx", WISH)) == DrainPlan(drain=("b",))


def test_the_wish_for_a_node_that_has_left_is_kept_for_a_while():
    assert drains({}, {"x": WISH}, time_s=1000.0 + REMEMBER_DRAIN_S).forget == ()
    assert drains({}, {"x": WISH}, time_s=1000.1 + REMEMBER_DRAIN_S).forget == ("x",)
    assert drains(seen(node("x", draining=True)), {"x": WISH}, time_s=9e9) == DrainPlan()


def test_a_drain_that_is_refused_is_asked_for_later_and_later():
    nodes, refusal, now_s, waits = seen(node("b")), None, 50.0, []
    for _ in range(8):
        refusals = {"b": refusal} if refusal else {}
        assert drains(nodes, {"b": WISH}, refusals, now_s).drain == ("b",)
        refusal = after_drain_refused(refusal, "busy", now_s)
        waits.append(refusal.again_at_s - now_s)
        held = drains(nodes, {"b": WISH}, {"b": refusal}, refusal.again_at_s - 0.1)
        assert held.drain == () and held.refusals == {"b": refusal}
        now_s = refusal.again_at_s
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0] and refusal.times == 8


def test_a_refusal_is_forgotten_once_the_node_drains_or_has_left_or_nobody_wants_it_any_more():
    refusals = {"b": after_drain_refused(None, "busy", 0.0)}
    for nodes, wishes in (
        (seen(node("b", draining=True)), {"b": WISH}),
        ({}, {"b": WISH}),
        (seen(node("b")), {}),
    ):
        assert drains(nodes, wishes, refusals, 9.0).refusals == {}


def test_a_node_is_drained_only_once_neither_replica_nor_gateway_is_there():
    empty, busy = node("b", draining=True), node("b", draining=True, replicas={"m:1": 1})
    states = [
        node_reports(seen(each), gateways, {})[0].state
        for each, gateways in ((node("b"), {}), (busy, {}), (empty, {"b": "DELETING"}), (empty, {}))
    ]
    assert states == ["UP", "DRAINING", "DRAINING", "DRAINED"]


def test_reports_show_the_head_first_and_what_is_used():
    nodes = seen(
        node("b", total={"CPU": 4.0, "GPU": 1.0}, available={"CPU": 1.5, "GPU": 1.0}, replicas={"n:1": 1, "m:2": 1}),
        node("a", labels={"zone": "z", "pool": "red"}),
        node("h", head=True),
    )
    reports = node_reports(nodes, {"b": "RUNNING"}, {"a": after_drain_refused(None, "busy", 0.0)})
    assert [report.id for report in reports] == ["h", "a", "b"]
    last = reports[-1]
    assert (last.used, last.gateway) == ({"CPU": 2.5, "GPU": 0.0}, "RUNNING")
    assert list(last.replicas) == ["m:2", "n:1"]
    assert list(reports[1].labels.items()) == [("pool", "red"), ("zone", "z")]
    assert [report.reason for report in reports] == ["", "cannot be drained: busy", ""]
