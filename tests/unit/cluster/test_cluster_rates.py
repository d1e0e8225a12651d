from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from cluster.rates import Reading, Readings, quantile_s

BOUNDS = (0.001, 0.01, 0.1)


def reading(gateway, at_s, answered, buckets, failed=0, batches=0, rows=0.0):
    counts = {"status": {"200": answered, "429": failed}, "request_buckets": buckets}
    return Reading(gateway, at_s, BOUNDS, {("m", "1"): {**counts, "batches": batches, "batch_rows": rows}})


def test_a_rate_is_what_was_counted_between_two_readings_of_one_gateway():
    readings = Readings()
    assert readings.take([reading("a", 10.0, 100, [100, 0, 0, 0])], 10.0) == {}
    rate = readings.take([reading("a", 12.0, 180, [100, 80, 0, 0], failed=4, batches=10, rows=80.0)], 12.0)["m", "1"]
    assert rate.requests_per_s == approx(42.0) and rate.errors_per_s == approx(2.0)
    assert rate.batch_rows == 8.0
    assert 0.001 < rate.p50_s < rate.p99_s <= 0.01


def test_gateways_are_added_up_and_never_compared_with_each_other():
    readings = Readings()
    readings.take([reading("a", 10.0, 1000, [1000, 0, 0, 0])], 10.0)
    assert readings.take([reading("b", 11.0, 5, [5, 0, 0, 0])], 11.0) == {}
    readings.take([reading("a", 12.0, 1020, [1020, 0, 0, 0])], 12.0)
    rate = readings.take([reading("b", 13.0, 25, [25, 0, 0, 0])], 13.0)["m", "1"]
    assert rate.requests_per_s == approx(20.0)


def test_a_gateway_that_is_gone_stops_counting():
    readings = Readings()
    readings.take([reading("a", 10.0, 0, [0, 0, 0, 0])], 10.0)
    assert readings.take([reading("a", 11.0, 9, [9, 0, 0, 0])], 11.0)
    assert readings.take([], 30.0) == {}


def test_a_version_that_answered_nothing_has_no_latency():
    readings = Readings()
    readings.take([reading("a", 10.0, 3, [3, 0, 0, 0])], 10.0)
    rate = readings.take([reading("a", 11.0, 3, [3, 0, 0, 0])], 11.0)["m", "1"]
    assert (rate.requests_per_s, rate.p99_s, rate.batch_rows) == (0.0, None, None)


def test_a_version_that_is_new_counts_from_zero():
    readings = Readings()
    readings.take([Reading("a", 10.0, BOUNDS, {})], 10.0)
    assert readings.take([reading("a", 11.0, 7, [7, 0, 0, 0])], 11.0)["m", "1"].requests_per_s == approx(7.0)


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.floats(0.01, 1), st.floats(0.01, 1))
def test_quantiles_grow_with_q_and_stay_within_the_bounds(buckets, p, q):
    low, high = (quantile_s(buckets, BOUNDS, share) for share in sorted((p, q)))
    if not sum(buckets):
        assert low is None and high is None
    else:
        assert 0 <= low <= high <= BOUNDS[-1]
