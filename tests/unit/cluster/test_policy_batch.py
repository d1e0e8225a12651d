from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.costs import CostCurve
from cluster.errors import InvalidRequest
from cluster.policy.batch import BatchPolicy, Waiting

CURVE = CostCurve.of({1: 0.002, 8: 0.004})
POLICY = BatchPolicy(max_rows=8, max_wait_s=0.005, costs=CURVE)
EAGER = BatchPolicy(max_rows=8)

units = st.lists(
    st.builds(
        Waiting,
        id=st.uuids().map(lambda u: u.int),
        rows=st.integers(1, 12),
        arrived_s=st.floats(0, 1),
        deadline_s=st.one_of(st.just(inf), st.floats(0, 3)),
        priority=st.integers(0, 1),
        group=st.sampled_from(["a", "b"]),
    ),
    max_size=20,
)


def test_a_tight_deadline_cuts_the_wait_short():
    tight = [Waiting(1, rows=1, arrived_s=0.0, deadline_s=0.006)]
    assert POLICY.decide(tight, now_s=0.0).wake_s == pytest.approx(0.004)


def test_company_is_waited_for_no_longer_than_allowed():
    assert POLICY.decide([Waiting(1, 1, 0.0)], now_s=0.0).wake_s == pytest.approx(0.005)
    assert POLICY.decide([Waiting(1, 1, 0.0)], now_s=0.005).run == (1,)


def test_a_full_batch_does_not_wait():
    assert POLICY.decide([Waiting(i, 4, 0.0) for i in (1, 2, 3)], now_s=0.0).run == (1, 2)


def test_a_batch_that_nothing_waiting_can_join_does_not_wait():
    assert POLICY.decide([Waiting(1, 5, 0.0), Waiting(2, 5, 0.0)], now_s=0.0).run == (1,)


def test_with_no_wait_whatever_is_there_runs():
    assert EAGER.decide([Waiting(1, 1, 0.0)], now_s=0.0).run == (1,)


def test_order_is_kept_even_if_a_later_unit_would_fit():
    assert EAGER.decide([Waiting(1, 5, 0.0), Waiting(2, 5, 0.0), Waiting(3, 1, 0.0)], now_s=0.0).run == (1,)


def test_shapes_do_not_mix():
    queue = [Waiting(1, 1, 0.0, group="a"), Waiting(2, 1, 0.0, group="b"), Waiting(3, 1, 0.0, group="a")]
    assert EAGER.decide(queue, now_s=0.0).run == (1, 3)


def test_the_urgent_class_goes_first_but_not_for_ever():
    queue = [Waiting(1, 1, 0.0, priority=1), Waiting(2, 1, 0.0, priority=0)]
    assert EAGER.decide(queue, now_s=0.0, urgent_run=0).run == (2,)
    assert EAGER.decide(queue, now_s=0.0, urgent_run=EAGER.class_turn).run == (1,)


def test_what_is_too_late_expires():
    decision = EAGER.decide([Waiting(1, 1, 0.0, deadline_s=1.0), Waiting(2, 1, 0.0)], now_s=2.0)
    assert decision.expire == (1,) and decision.run == (2,)


def test_a_queue_is_bounded_in_rows():
    policy = BatchPolicy(max_rows=4, max_queue_rows=10)
    assert policy.admits(8, 2) and not policy.admits(9, 2)


def test_a_batch_that_can_never_fill_is_refused():
    with pytest.raises(InvalidRequest, match="64 rows can never fill"):
        BatchPolicy(max_rows=64, max_queue_rows=10)


def test_the_predicted_answer_counts_what_goes_first():
    assert POLICY.predict_s(0, 8) == pytest.approx(0.004)
    assert POLICY.predict_s(16, 8) == pytest.approx(0.012)
    assert POLICY.predict_s(12, 8) == pytest.approx(0.004 + CURVE.run_s(4) + 0.004)


@given(units, st.floats(0, 2), st.integers(0, 10), st.sampled_from([0.0, 0.1]))
def test_a_decision_is_always_sound(queue, now_s, urgent_run, max_wait_s):
    policy = BatchPolicy(max_rows=8, max_wait_s=max_wait_s, costs=CURVE)
    decision = policy.decide(queue, now_s, urgent_run)
    by_id = {unit.id: unit for unit in queue}
    run = [by_id[i] for i in decision.run]
    assert not set(decision.run) & set(decision.expire)
    assert {u.id for u in queue if u.deadline_s < now_s} == set(decision.expire)
    assert sum(u.rows for u in run) <= 8 or len(run) == 1
    assert len({(u.group, u.priority) for u in run}) <= 1
    positions = [queue.index(u) for u in run]
    assert positions == sorted(positions)
    live = [u for u in queue if u.id not in decision.expire]
    if live and max_wait_s == 0:
        assert run  # nothing is left lying while the engine is free
    if live and not run:
        assert now_s < decision.wake_s <= max(u.arrived_s for u in live) + max_wait_s


@given(units)
def test_asking_again_and_again_empties_any_queue(queue):
    left = {unit.id: unit for unit in queue}
    rounds = 0
    while left:
        decision = EAGER.decide(list(left.values()), now_s=1.0, urgent_run=rounds % 9)
        for unit_id in (*decision.run, *decision.expire):
            del left[unit_id]
        rounds += 1
        assert rounds <= len(queue)
