"""Which configuration serves an objective with the least hardware."""

import pytest

from cluster.costs import CostCurve
from cluster.errors import InvalidRequest
from cluster.latency import LatencyBound
from converters import objective
from converters.objective import (
    Configuration,
    Result,
    batch_sizes,
    choose,
    evaluate,
    parse_objective,
    reasons,
)
from converters.optimize import simulate

FLAT = CostCurve.of({1: 0.004, 2: 0.0042, 4: 0.0046, 8: 0.005})  # a batch costs hardly more than a row
STEEP = CostCurve.of({1: 0.004, 2: 0.008, 4: 0.016, 8: 0.032})  # batching buys nothing
P99 = LatencyBound(99, 0.02)


def result(target, rate, threads=1, one_row_s=0.001, rows=8):
    return Result(Configuration(target, threads, rows), rate, 0.01, one_row_s)


def test_an_objective_is_a_percentile_and_a_time():
    assert parse_objective("p99<20ms") == LatencyBound(99, 0.02)
    assert parse_objective(" p99.9 < 1.5 s") == LatencyBound(99.9, 1.5)
    assert parse_objective("p50<300us").limit_s == pytest.approx(3e-4)
    assert str(LatencyBound(99, 0.02)) == "p99<20ms"


@pytest.mark.parametrize("text", ["", "20ms", "p99", "p99>20ms", "p100<1ms", "p0<1ms", "p99<0ms", "p99<20", "p99<2h"])
def test_an_objective_that_cannot_be_read_is_refused(text):
    with pytest.raises(InvalidRequest, match="objective: expected"):
        parse_objective(text)


def test_batching_pays_where_a_batch_costs_little_more_than_a_row():
    alone = evaluate(Configuration("onnx", 1, 1), FLAT, P99)
    together = evaluate(Configuration("onnx", 1, 8), FLAT, P99)
    assert together.rate > 2 * alone.rate > 0
    assert together.latency_s <= P99.limit_s


def test_no_rate_is_above_what_the_costs_allow():
    found = evaluate(Configuration("onnx", 1, 8), STEEP, P99)
    assert 0 < found.rate < 250


def test_a_tighter_objective_is_held_at_a_lower_rate():
    tight = evaluate(Configuration("onnx", 1, 8), FLAT, LatencyBound(99, 0.012))
    loose = evaluate(Configuration("onnx", 1, 8), FLAT, LatencyBound(99, 0.05))
    assert tight.rate < loose.rate


def test_a_model_slower_than_the_objective_holds_at_no_rate():
    found = evaluate(Configuration("onnx", 1, 8), FLAT, LatencyBound(99, 0.003))
    assert found.rate == 0 and choose([found]) is None
    assert reasons([found], None, LatencyBound(99, 0.003)) == {found.configuration: "one row alone takes 4 ms"}


def test_threads_count_as_hardware():
    two, one = result("onnx", 150, threads=2), result("onnx", 100)
    assert choose([two, one]) is one


def test_among_results_that_measurements_cannot_tell_apart_the_first_is_kept():
    exact, faster, slow = result("onnx", 100), result("int8", 104), result("fp16", 50)
    assert choose([exact, faster, slow]) is exact
    assert choose([slow, result("int8", 200), exact]).configuration.target == "int8"
    why = reasons([exact, faster, slow], exact, P99)
    assert why[exact.configuration] == "kept"
    assert "within 5%" in why[faster.configuration] and "50% fewer requests" in why[slow.configuration]


def test_only_measured_batches_are_tried():
    assert batch_sizes(FLAT, 5) == (1, 2, 4)
    assert batch_sizes(CostCurve(), 5) == (1,)


def test_the_same_configuration_gives_the_same_result(monkeypatch):
    monkeypatch.setattr(objective, "HALVINGS", 3)
    configuration = Configuration("onnx", 1, 4)
    assert evaluate(configuration, FLAT, P99) == evaluate(configuration, FLAT, P99)


def test_a_target_that_could_not_be_measured_has_no_result():
    assert simulate({"tensorrt": object()}, {}, P99, "gpu") == ()
