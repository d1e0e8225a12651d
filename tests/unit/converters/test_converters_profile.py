"""What a profile says of a model."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.costs import CostCurve
from converters.profile import counts, measure, merge, settle
from onnx_models import mlp_artifact


def test_powers_of_two_and_the_largest_batch_are_measured():
    assert counts(1) == (1,)
    assert counts(20) == (1, 2, 4, 8, 16, 20)
    assert counts(64) == (1, 2, 4, 8, 16, 32, 64)


@given(st.dictionaries(st.integers(1, 512), st.floats(1e-6, 10.0), min_size=1))
def test_a_settled_curve_never_falls_and_never_rises_above_what_was_measured(points):
    settled = settle(points)
    seconds = list(settled.values())
    assert seconds == sorted(seconds)
    assert all(settled[rows] <= points[rows] for rows in points)


def test_of_two_measurements_the_faster_points_are_kept():
    first = {"seconds_by_rows": {"1": 0.01, "2": 0.02, "4": 0.08}, "load_s": 2.0, "first_call_s": 0.1, "threads": 1}
    second = {"seconds_by_rows": {"1": 0.03, "2": 0.015}, "load_s": 1.0, "first_call_s": 0.2, "threads": 1}
    found = merge(first, second)
    assert found["seconds_by_rows"] == {"1": 0.01, "2": 0.015, "4": 0.08}
    assert (found["load_s"], found["first_call_s"], found["threads"], found["best_rows"]) == (1.0, 0.1, 1, 2)


def test_a_measured_artifact_has_a_curve_up_to_its_largest_batch(tmp_path):
    artifact = mlp_artifact(tmp_path, max_rows=4)
    found = measure(artifact.path, threads=1, budget_s=20.0)
    curve = CostCurve.of({int(rows): s for rows, s in found["seconds_by_rows"].items()})
    assert curve.rows == (1, 2, 4)
    assert 0 < curve.run_s(1) < 0.1
    assert found["best_rows"] in (1, 2, 4) and found["load_s"] > 0 and found["threads"] == 1
