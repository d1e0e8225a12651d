import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.costs import CostCurve
from cluster.errors import InvalidRequest
from cluster.policy.batch import BatchPolicy
from cluster.sim.path import Path, PathSettings

COSTS = CostCurve.of({1: 0.010, 4: 0.016, 8: 0.024})
SETTINGS = PathSettings(BatchPolicy(8, costs=COSTS), noise=0.0, hop_s=0.0)


def path(due, settings=SETTINGS, replicas=1):
    made = Path(np.array(due, dtype=float), settings, np.random.default_rng(0))
    for _ in range(replicas):
        made.start(-1.0, 1.0)
    return made


def test_a_request_alone_takes_what_one_row_costs():
    alone = path([1.0])
    alone.advance(10.0)
    assert alone.latency_s[0] == pytest.approx(0.010)


def test_what_arrives_while_a_batch_runs_goes_with_the_next():
    three = path([1.0, 1.001, 1.002])
    three.advance(10.0)
    both_s = 0.010 + COSTS.run_s(2)
    assert three.latency_s.tolist() == pytest.approx([0.010, both_s - 0.001, both_s - 0.002])


def test_a_second_replica_answers_what_the_first_has_no_slot_for():
    one, two = path([1.0] * 64), path([1.0] * 64, replicas=2)
    one.advance(10.0)
    two.advance(10.0)
    assert two.latency_s.max() < 0.6 * one.latency_s.max()


def test_nothing_is_answered_before_a_replica_is_ready():
    early = Path(np.array([0.0]), SETTINGS, np.random.default_rng(0))
    early.start(0.0, 3.0)
    early.advance(2.9)
    assert np.isinf(early.latency_s[0])
    early.advance(4.0)
    assert early.latency_s[0] == pytest.approx(3.010)


def test_a_stopped_replica_answers_what_it_has_and_gets_no_more():
    busy = path([1.0, 1.2])
    busy.advance(1.005)
    [replica] = busy.replicas.values()
    busy.stop(replica)
    assert replica.id in busy.replicas
    busy.advance(5.0)
    assert busy.latency_s[0] == pytest.approx(0.010) and np.isinf(busy.latency_s[1])
    assert not busy.replicas


def test_a_replica_that_is_stopped_while_it_starts_never_answers():
    early = Path(np.array([0.0]), SETTINGS, np.random.default_rng(0))
    early.start(0.0, 3.0)
    early.stop(early.starting()[0])
    early.advance(10.0)
    assert np.isinf(early.latency_s[0]) and not early.ready()


def test_more_than_may_wait_is_refused_and_what_waits_too_long_fails():
    full = Path(np.zeros(10), PathSettings(BatchPolicy(8, costs=COSTS), max_waiting_rows=4), np.random.default_rng(0))
    full.advance(1.0)
    assert full.refused == 6
    full.start(31.0, 1.0)
    full.advance(40.0)
    assert full.expired == 4 and np.isinf(full.latency_s).all()


def test_a_curve_is_needed():
    with pytest.raises(InvalidRequest, match="costs"):
        PathSettings(BatchPolicy(8))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 2), min_size=1, max_size=120),
    st.integers(1, 4),
    st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=6),
)
def test_every_request_is_answered_once_and_no_sooner_than_a_batch_takes(due, replicas, changes):
    due = sorted(due)
    made = path(due, replicas=replicas)
    for at_s, starts in sorted(changes):
        made.advance(at_s)
        if starts:
            made.start(at_s, 0.3)
        elif len(made.ready()) > 1:
            made.stop(made.ready()[0])
    total = sum(replica.rows_done for replica in made.replicas.values())
    made.advance(20.0)
    assert np.isfinite(made.latency_s).all() and (made.latency_s >= 0.010 - 1e-9).all()
    assert made.in_flight_rows == 0 and not made.waiting
    assert total <= len(due)
