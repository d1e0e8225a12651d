import time

from deployments.gateway.membership import GONE_KEPT, Membership
from deployments.startup import METADATA, Start


def start(ready_s):
    return {"unix": "/s", METADATA: Start({"process": 1.0, "load": 0.5}, ready_s).encode()}


def test_a_listener_hears_the_present_list_and_every_later_one():
    membership, heard = Membership(), []
    membership.publish("a", {"r1": {"unix": "/1"}})
    membership.listen("a", heard.append)
    membership.publish("a", {})
    membership.publish("other", {"r9": {}})
    assert heard == [{"r1": {"unix": "/1"}}, {}]


def test_how_replicas_started_is_known_and_how_late_that_was_learned():
    membership = Membership()
    membership.listen("a", lambda _: None)
    ready_s = time.time() + 0.001
    membership.publish("a", {"new": start(ready_s), "old": start(1.0), "silent": {"unix": "/2"}})
    seen = {each.replica: each for each in membership.starts("a")}
    assert set(seen) == {"new", "old"}
    assert seen["new"].start.total_s == 1.5
    assert seen["new"].seen_after_s is not None and seen["new"].seen_after_s < 60
    assert seen["old"].seen_after_s is None  # it was there before this process listened


def test_when_a_replica_was_met_does_not_change_with_later_lists():
    membership = Membership()
    membership.listen("a", lambda _: None)
    replica = start(time.time())
    membership.publish("a", {"r": replica})
    first = membership.starts("a")
    membership.publish("a", {"r": replica, "s": replica})
    assert membership.starts("a")[0] == first[0]
    membership.publish("a", {"s": replica})
    membership.publish("a", {"r": replica})  # back after a change in place
    assert membership.starts("a") == first
    membership.forget("a")
    assert membership.starts("a") == []


def test_replicas_that_have_gone_are_not_remembered_for_ever():
    membership = Membership()
    for i in range(5 * GONE_KEPT):
        membership.publish("a", {f"r{i}": {}, "stays": {}})
    (met_s,) = membership._met_s.values()
    assert len(met_s) <= GONE_KEPT + 2 and {"stays", f"r{i}", f"r{i - 1}"} <= set(met_s)
