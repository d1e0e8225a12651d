from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from cluster.costs import CostCurve
from cluster.policy.arrival import Arrivals, Pace, too_late

CURVE = CostCurve.of({1: 0.002, 8: 0.008})
ARRIVALS = Arrivals(8, CURVE.run_s)
BUSY = st.lists(st.floats(0, 1), min_size=1, max_size=5)


def test_an_idle_version_needs_the_time_of_the_request_alone():
    assert ARRIVALS.needs_s([0.0], 0, 1) == approx(0.002)
    assert ARRIVALS.needs_s([0.0, 0.5], 0, 8) == approx(0.008)


def test_full_batches_that_go_first_count_and_replicas_share_them():
    assert ARRIVALS.needs_s([0.0], 80, 1) == approx(0.082)
    assert ARRIVALS.needs_s([0.0, 0.0], 80, 1) == approx(0.038)  # at best: one of ten has only just begun


def test_a_partial_batch_that_waits_may_have_room():
    assert ARRIVALS.needs_s([0.0], 7, 1) == approx(0.002)


def test_a_replica_that_is_busy_for_long_is_left_to_itself():
    assert ARRIVALS.needs_s([0.0, 9.0], 88, 1) == approx(0.082)
    assert ARRIVALS.needs_s([0.010, 0.030], 16, 1) == approx(0.020)


def test_work_is_counted_in_full_batches():
    assert ARRIVALS.work_s(0) == 0.0
    assert ARRIVALS.work_s(17) == approx(0.018)


def test_nothing_measured_predicts_nothing():
    blind = Arrivals(8, CostCurve().run_s)
    assert blind.needs_s([0.0], 10_000, 1) == 0.0 and blind.row_s == 0.0


def test_a_refusal_says_what_is_left_and_what_it_takes():
    assert too_late(0.05, 0.2).message == "deadline: 50 ms are left, the answer is expected to take 200 ms"
    assert too_late(-1.0, 0.2).message.startswith("deadline: 0 ms are left")


@given(BUSY, st.integers(0, 200), st.integers(1, 8), st.integers(0, 100))
def test_more_ahead_never_needs_less_and_another_replica_never_more(busy, ahead, rows, more):
    needs_s = ARRIVALS.needs_s(busy, ahead, rows)
    assert needs_s >= CURVE.run_s(rows)
    assert ARRIVALS.needs_s(busy, ahead + more, rows) >= needs_s - 1e-12
    assert ARRIVALS.needs_s([*busy, 0.5], ahead, rows) <= needs_s + 1e-12
    assert ARRIVALS.needs_s([min(busy)], 0, rows) <= needs_s + 1e-12


@given(BUSY, st.integers(0, 200), st.integers(1, 8))
def test_no_division_of_the_work_ends_earlier(busy, ahead, rows):
    """Whole batches given one by one to whoever is free first: real replicas can do no better than the bound."""
    free = sorted(busy)
    for _ in range(ahead // 8):
        free[0] += CURVE.run_s(8)
        free.sort()
    assert ARRIVALS.needs_s(busy, ahead, rows) <= free[0] + CURVE.run_s(rows) + 1e-9


@given(st.integers(0, 300))
def test_the_quick_bound_is_never_below_the_work(rows):
    assert rows * ARRIVALS.row_s >= ARRIVALS.work_s(rows) - 1e-12


def test_the_pace_follows_what_batches_take_and_is_never_above_what_was_predicted():
    pace = Pace(ARRIVALS)
    assert not pace.known(0.0)
    pace.took(0, 9.0, 0.0)  # nobody knows of how many rows
    assert not pace.known(0.0)
    pace.took(8, 0.002, 0.0)
    assert pace.known(1.0) and pace.arrivals.needs_s([0.0], 0, 8) == approx(0.002)
    assert pace.arrivals.row_s == approx(0.0005) and pace.arrivals.work_s(17) == approx(0.0045)
    for _ in range(100):
        pace.took(8, 0.1, 1.0)
    assert pace.arrivals.pace == approx(1.0, rel=0.1) and pace.arrivals.pace <= 1.0


def test_a_pace_that_nothing_was_predicted_for_is_never_known():
    blind = Pace(Arrivals(8, CostCurve().run_s))
    blind.took(8, 0.1, 0.0)
    assert not blind.known(0.0)
