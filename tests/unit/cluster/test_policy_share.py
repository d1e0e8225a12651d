import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from cluster.policy import share as policy
from cluster.policy.share import Claim, fits, limits, share

ONE = {"GPU": 1.0}


@st.composite
def claim(draw, needs=None):
    least = draw(st.integers(0, 3))
    most = draw(st.integers(max(1, least), 12))
    return Claim(
        wants=draw(st.integers(0, 15)),
        needs=needs or draw(st.sampled_from([{"CPU": 1.0}, {"CPU": 0.5, "GPU": 0.25}, {"CPU": 2.0, "GPU": 1.0}])),
        least=least,
        most=most,
        weight=draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])),
        priority=draw(st.integers(-1, 1)),
    )


claims = st.dictionaries(st.sampled_from("abcdef"), claim(), min_size=1)
equal_claims = st.dictionaries(st.sampled_from("abcdef"), claim(needs={"GPU": 1.0}), min_size=1)
capacities = st.fixed_dictionaries({"CPU": st.integers(0, 20), "GPU": st.integers(0, 10)})


def used(given_replicas, asked, resource):
    return sum(count * asked[name].needs.get(resource, 0.0) for name, count in given_replicas.items())


@given(claims, capacities)
def test_never_more_than_the_cluster_has_nor_than_one_may_have(asked, capacity):
    found = share(asked, capacity)
    assert set(found) == set(asked)
    assert all(0 <= count <= asked[name].most for name, count in found.items())
    for resource, amount in capacity.items():
        assert used(found, asked, resource) <= amount + 1e-6


def one_by_one(asked, capacity):
    """`share` as its docstring says it, replica by replica."""
    left, found = dict(capacity), dict.fromkeys(asked, 0)

    def turn(name):
        needs = asked[name].needs.items()
        sizes = [amount / capacity[r] for r, amount in needs if capacity.get(r, 0) > 0]
        return -asked[name].priority, (found[name] + 1) * max(1e-6, *sizes, 0.0) / asked[name].weight, name

    for goal, patient in (
        (lambda c: c.least, 1),
        (lambda c: max(c.least, min(c.wants, c.most)), 1),
        (lambda c: c.most, 0),
    ):
        waiting = {name for name in asked if found[name] < goal(asked[name])}
        while waiting:
            ready = [name for name in waiting if not (patient and asked[name].after in waiting - {name})]
            name = min(ready or waiting, key=turn)
            if all(left.get(r, 0) + 1e-6 >= amount for r, amount in asked[name].needs.items()):
                left |= {r: left[r] - amount for r, amount in asked[name].needs.items()}
                found[name] += 1
            else:
                waiting.discard(name)
            if found[name] >= goal(asked[name]):
                waiting.discard(name)
    return found


@st.composite
def rivals(draw):
    """Versions of which some are canaries of others, also in a circle, with needs that are multiples of a 64th."""
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True))
    made = {}
    for name in names:
        least = draw(st.integers(0, 5))
        needs = draw(
            st.dictionaries(st.sampled_from(["CPU", "GPU", "memory"]), st.integers(1, 256).map(lambda n: n / 64))
        )
        made[name] = Claim(
            wants=draw(st.integers(0, 90)),
            needs=needs,
            least=least,
            most=draw(st.integers(least, 150)),
            weight=draw(st.sampled_from([0.1, 0.5, 1.0, 3.0, 7.0])),
            priority=draw(st.integers(0, 1)),
            after=draw(st.sampled_from(["", *names])),
        )
    return made


@settings(max_examples=300, deadline=None)
@given(rivals(), st.fixed_dictionaries({"CPU": st.integers(0, 300), "GPU": st.integers(0, 40), "memory": st.just(200)}))
def test_replicas_taken_at_once_are_those_that_would_be_taken_one_by_one(asked, capacity):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "STEPS", 2)  # so that most are taken at once
        assert share(asked, capacity) == one_by_one(asked, capacity)


def test_a_million_replicas_cost_no_more_than_a_few():
    """Replica by replica this took minutes."""
    asked = {
        f"m:{i}": Claim(1000 + i, {"CPU": 0.1 * (1 + i % 7)}, most=1_000_000, weight=1 + i % 3, priority=i % 2)
        for i in range(60)
    }
    began_s = time.process_time()
    found = share(asked, {"CPU": 1e12})
    assert set(found.values()) == {1_000_000}
    found = share(asked, {"CPU": 1e6})
    assert 1e6 - 0.7 <= used(found, asked, "CPU") <= 1e6 + 1e-6
    assert time.process_time() - began_s < 5.0


@given(claims, capacities)
def test_nothing_that_fits_is_left_over(asked, capacity):
    found = share(asked, capacity)
    for name, each in asked.items():
        if found[name] < each.most:
            left = {resource: capacity.get(resource, 0) - used(found, asked, resource) for resource in each.needs}
            assert any(left[resource] < amount - 1e-6 for resource, amount in each.needs.items())


@given(equal_claims, st.integers(0, 30))
def test_minimums_come_before_anything_else(asked, gpus):
    found = share(asked, {"GPU": gpus})
    if sum(each.least for each in asked.values()) <= gpus:
        assert all(found[name] >= each.least for name, each in asked.items())
    else:
        assert all(found[name] <= each.least for name, each in asked.items())


@given(equal_claims, st.integers(0, 30))
def test_a_more_important_version_has_what_it_wants_before_another_gets_more_than_its_minimum(asked, gpus):
    found = share(asked, {"GPU": gpus})
    for name, each in asked.items():
        if found[name] < max(each.least, min(each.wants, each.most)):
            assert all(found[other] <= asked[other].least for other in asked if asked[other].priority < each.priority)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(4, 200))
def test_weights_are_kept_within_one_replica(one, two, gpus):
    asked = {"a": Claim(1000, ONE, weight=one), "b": Claim(1000, ONE, weight=two)}
    found = share(asked, {"GPU": gpus})
    assert found["a"] == pytest.approx(gpus * one / (one + two), abs=1.0)


@given(equal_claims, st.integers(0, 30), st.integers(0, 30))
def test_a_larger_cluster_takes_nothing_of_what_was_wanted_from_anybody(asked, gpus, more):
    wanted = {name: max(each.least, min(each.wants, each.most)) for name, each in asked.items()}
    before, after = share(asked, {"GPU": gpus}), share(asked, {"GPU": gpus + more})
    assert all(after[name] >= min(before[name], wanted[name]) for name in asked)


@given(equal_claims, st.integers(0, 30), st.integers(1, 5))
def test_wanting_more_never_brings_less(asked, gpus, more):
    name = sorted(asked)[0]
    eager = {**asked, name: replace(asked[name], wants=asked[name].wants + more)}
    assert share(eager, {"GPU": gpus})[name] >= share(asked, {"GPU": gpus})[name]


@given(st.integers(0, 20), st.integers(0, 10), st.integers(0, 10), st.integers(-1, 5))
def test_a_canary_gets_nothing_that_its_stable_version_still_wants(gpus, stable, canary, priority):
    asked = {
        "m:1": Claim(stable, ONE, least=min(1, stable)),
        "m:2": Claim(canary, ONE, weight=100, priority=priority, after="m:1"),
    }
    found = share(asked, {"GPU": gpus})
    assert found["m:2"] == 0 or found["m:1"] >= stable


def test_canaries_that_name_each_other_do_not_wait_for_ever():
    asked = {"m:1": Claim(2, ONE, most=2, after="m:2"), "m:2": Claim(2, ONE, most=2, after="m:1")}
    assert share(asked, {"GPU": 4}) == {"m:1": 2, "m:2": 2}


def test_enough_for_everybody_bounds_nobody():
    asked = {"a": Claim(2, ONE, most=50), "b": Claim(2, ONE, most=50)}
    assert fits(asked, {"GPU": 4})
    assert limits(asked, {"GPU": 4}) == {}


def test_a_version_alone_is_not_bounded_so_that_what_waits_can_bring_a_node():
    assert limits({"a": Claim(9, ONE), "b": Claim(0, ONE)}, {"GPU": 4}) == {}


def test_too_little_is_divided_and_everybody_who_wants_some_is_granted_one():
    asked = {"a": Claim(9, ONE, priority=1), "b": Claim(3, ONE)}
    assert limits(asked, {"GPU": 4}) == {"a": 4, "b": 1}


def test_what_does_not_fit_an_empty_cluster_bounds_nobody():
    asked = {"a": Claim(2, {"CPU": 1.0}), "b": Claim(1, {"GPU": 8.0, "CPU": 1.0})}
    assert limits(asked, {"CPU": 2, "GPU": 1}) == {}


def test_a_replica_counts_by_the_resource_of_which_it_takes_most():
    asked = {"cpu": Claim(100, {"CPU": 1.0}), "gpu": Claim(100, {"CPU": 1.0, "GPU": 1.0})}
    assert share(asked, {"CPU": 12, "GPU": 4}) == {"cpu": 9, "gpu": 3}  # three quarters each


def test_a_claim_says_which_field_is_wrong():
    with pytest.raises(InvalidRequest, match="weight: expected above 0"):
        Claim(1, ONE, weight=0)
