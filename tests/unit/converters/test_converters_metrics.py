"""Task metrics: known values, and the gate they close."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from cluster.tensors import ANY, TensorSpec
from converters.proof.evaluation import calls, evaluate, split
from converters.proof.metrics import METRICS, accuracy, auc, mae, mse, parse_metric, rmse, top5

SCORES = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], "f4")
X = TensorSpec("x", "FP32", (ANY, 2))


def test_accuracy_reads_scores_probabilities_and_classes():
    assert accuracy(SCORES, np.array([1, 0, 0])) == pytest.approx(2 / 3)
    assert accuracy(np.array([[0.2], [0.7]]), np.array([0, 1])) == 1
    assert accuracy(np.array([3, 4]), np.array([[3], [5]])) == 0.5


def test_top5_needs_more_than_five_classes():
    scores = np.eye(7)[[0, 1]] + np.arange(7) / 10
    assert top5(scores, np.array([0, 0])) == 0.5
    with pytest.raises(InvalidRequest, match="top5 needs"):
        top5(SCORES, np.array([0, 1, 0]))


def test_errors_are_those_of_the_text_book():
    answers, labels = np.array([[1.0], [4.0]]), np.array([1.0, 1.0])
    assert (mse(answers, labels), mae(answers, labels)) == (4.5, 1.5)
    assert rmse(answers, labels) == pytest.approx(4.5**0.5)
    with pytest.raises(InvalidRequest, match="as many values as labels"):
        mse(SCORES, np.array([1.0, 2.0, 3.0]))


def test_auc_counts_ties_as_half():
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75
    assert auc(np.zeros(4), np.array([0, 1, 0, 1])) == 0.5
    with pytest.raises(InvalidRequest, match="both classes"):
        auc(np.zeros(2), np.ones(2))


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows):
    scores, labels = np.array([s for s, _ in rows], float), np.array([p for _, p in rows])
    if labels.all() or not labels.any():
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))


def test_a_drop_is_absolute_for_scores_and_relative_for_errors():
    assert METRICS["accuracy"].drop(0.9, 0.8) == pytest.approx(0.1)
    assert METRICS["accuracy"].drop(0.8, 0.9) < 0
    assert METRICS["mse"].drop(2.0, 3.0) == pytest.approx(0.5)
    assert METRICS["mse"].drop(0.0, 0.0) == 0 and METRICS["mse"].drop(0.0, 1.0) == float("inf")


def test_a_metric_may_name_an_output():
    assert parse_metric("auc:scores")[1] == "scores" and parse_metric("mse")[1] is None
    with pytest.raises(InvalidRequest, match="metric: expected one of accuracy"):
        parse_metric("f1")


def test_the_gate_closes_when_the_drop_is_larger_than_allowed():
    labels = np.array([1, 0, 1])
    worse = SCORES[:, ::-1].copy()
    found = evaluate("accuracy", 0.5, ["scores"], labels, [(SCORES,)], [(worse,)])
    assert (found.source, found.converted) == (1.0, 0.0)
    assert found.failure is not None and "from 1.0000 to 0.0000 on 3 rows" in found.failure
    assert evaluate("accuracy", 1.0, ["scores"], labels, [(SCORES,)], [(worse,)]).failure is None
    assert evaluate("accuracy", None, ["scores"], labels, [(SCORES,)], [(worse,)]).failure is None


def test_a_metric_that_is_no_number_is_a_failure():
    nan = np.array([[np.nan], [1.0]])
    assert evaluate("mse", None, ["y"], np.ones(2), [], [(nan,)]).failure == "mse of y is nan"


def test_without_a_source_there_is_a_metric_and_no_drop():
    found = evaluate("accuracy", 0.0, ["a", "scores"], np.array([1, 0, 1]), [], [(np.zeros(3), SCORES)])
    assert found.output == "a" and found.source is None and found.drop is None and found.failure is None
    with pytest.raises(InvalidRequest, match="expected an output of"):
        evaluate("accuracy:b", None, ["a"], np.ones(3), [], [(SCORES,)])


def test_exactly_one_array_of_an_evaluation_file_is_no_input(tmp_path):
    data = {"x": np.zeros((2, 2)), "label": np.zeros(2)}
    inputs, labels = split(data, ["x"], tmp_path / "e.npz")
    assert list(inputs) == ["x"] and labels.shape == (2,)
    with pytest.raises(InvalidRequest, match="one array of labels"):
        split({**data, "more": np.zeros(2)}, ["x"], tmp_path / "e.npz")
    with pytest.raises(InvalidRequest, match="one array of labels"):
        split({"label": np.zeros(2)}, ["x"], tmp_path / "e.npz")


def test_evaluation_calls_keep_the_order_of_the_rows():
    data = {"x": np.arange(100, dtype="f4").reshape(50, 2)}
    found = calls(data, [X], batched=True, max_rows=20)
    assert [case.rows for case in found] == [20, 20, 10]
    np.testing.assert_array_equal(np.concatenate([case.inputs["x"] for case in found]), data["x"])


def test_what_does_not_fill_a_fixed_batch_is_left_out():
    data = {"x": np.arange(14, dtype="f4").reshape(7, 2)}
    found = calls(data, [TensorSpec("x", "FP32", (3, 2))], batched=False, max_rows=1)
    assert [case.inputs["x"].shape for case in found] == [(3, 2), (3, 2)]
    with pytest.raises(InvalidRequest, match="at least 8 rows"):
        calls(data, [TensorSpec("x", "FP32", (8, 2))], batched=False, max_rows=1)
