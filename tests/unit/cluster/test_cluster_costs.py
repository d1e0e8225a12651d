from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from cluster.costs import CostCurve, fastest

PUBLISHED = CostCurve.of({1: 0.010, 2: 0.012, 4: 0.016, 8: 0.024})
EMPTY = CostCurve()

rising = st.tuples(st.integers(1, 20), st.floats(1e-5, 0.1))
curves = st.lists(rising, min_size=1, max_size=6).map(
    lambda steps: CostCurve(tuple(accumulate(n for n, _ in steps)), tuple(accumulate(s for _, s in steps)))
)


def test_what_was_measured_counts_and_the_published_shape_goes_on_from_there():
    found = PUBLISHED.corrected({1: 0.020, 2: 0.030}, 8)
    assert found.rows == (1, 2, 4, 8)
    assert found.seconds == approx((0.020, 0.030, 0.030 / 0.012 * 0.016, 0.030 / 0.012 * 0.024))


def test_one_point_is_enough_to_scale_a_published_curve():
    assert PUBLISHED.corrected({1: 0.005}, 8).seconds == approx([s / 2 for s in PUBLISHED.seconds])


def test_one_point_alone_says_nothing_unless_there_is_only_one_size():
    assert EMPTY.corrected({1: 0.020}, 8) == EMPTY
    assert EMPTY.corrected({1: 0.020}, 1) == CostCurve.of({1: 0.020})
    assert EMPTY.corrected({1: 0.020, 2: 0.030}, 8) == CostCurve.of({1: 0.020, 2: 0.030})


def test_nothing_measured_leaves_the_published_curve():
    assert PUBLISHED.corrected({}, 8) == PUBLISHED


def test_the_fastest_machine_counts_for_each_batch_on_its_own():
    few, many = CostCurve.of({1: 0.001, 8: 0.080}), CostCurve.of({1: 0.010, 8: 0.020})
    assert fastest([few, many]) == CostCurve.of({1: 0.001, 8: 0.020})


def test_machines_that_say_nothing_do_not_count():
    assert fastest([EMPTY, PUBLISHED]) == PUBLISHED
    assert fastest([]) == EMPTY


@given(st.lists(curves, min_size=1, max_size=4))
def test_no_machine_is_faster_than_the_fastest_where_it_was_measured(found):
    least = fastest(found)
    assert all(
        least.run_s(rows) <= s * (1 + 1e-9)
        for curve in found
        for rows, s in zip(curve.rows, curve.seconds, strict=True)
    )
