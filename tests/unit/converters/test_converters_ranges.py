"""Free axes besides rows: what the user promises, and the calls that prove its edges."""

import numpy as np
import pytest

from cluster.errors import InvalidRequest
from cluster.tensors import ANY, TensorSpec
from converters.candidate import Options
from converters.ranges import AxisRange, check_ranges, edge_cases, parse_range, parse_ranges, typical_sizes
from converters.samples import cases_for

IDS, MASK = TensorSpec("ids", "INT64", (ANY, ANY)), TensorSpec("mask", "INT64", (ANY, ANY))


def test_a_range_names_input_axis_and_both_ends():
    assert parse_range("ids:1=1..128") == AxisRange("ids", 1, 1, 128)
    assert parse_range("a:b:2=3..3") == AxisRange("a:b", 2, 3, 3)


@pytest.mark.parametrize("text", ["ids", "ids:1", "ids:1=5..4", "ids:1=0..4", "ids:0=1..4", "ids:x=1..2", "ids:1=1-9"])
def test_a_range_that_cannot_be_read_is_refused(text):
    with pytest.raises(InvalidRequest, match=r"dynamic: expected name:axis=min\.\.max"):
        parse_range(text)


def test_an_axis_has_one_range():
    with pytest.raises(InvalidRequest, match="each axis once"):
        parse_ranges(["ids:1=1..2", "ids:1=1..3"])


def test_a_range_for_an_axis_that_is_not_free_is_refused():
    with pytest.raises(InvalidRequest, match="expected an input of"):
        check_ranges([AxisRange("x", 1, 1, 2)], [IDS])
    with pytest.raises(InvalidRequest, match="ids:2: that axis is not free"):
        check_ranges([AxisRange("ids", 2, 1, 2)], [IDS])
    with pytest.raises(InvalidRequest, match="not free"):
        check_ranges([AxisRange("x", 1, 1, 2)], [TensorSpec("x", "FP32", (ANY, 3))])


def test_axes_with_the_same_range_move_together():
    data = {"ids": np.arange(20).reshape(4, 5), "mask": np.ones((4, 5))}
    low, high = edge_cases(data, [AxisRange("ids", 1, 1, 7), AxisRange("mask", 1, 1, 7)], rows=3)
    assert [low.inputs[name].shape for name in ("ids", "mask")] == [(3, 1), (3, 1)]
    assert [high.inputs[name].shape for name in ("ids", "mask")] == [(3, 7), (3, 7)]
    assert high.inputs["ids"][1].tolist() == [5, 6, 7, 8, 9, 5, 6]  # the data goes on from its beginning
    assert "ids:1=7" in high.origin


def test_axes_with_different_ranges_are_each_tried_alone_at_their_largest():
    data = {"x": np.zeros((2, 3, 10, 12))}
    cases = edge_cases(data, [AxisRange("x", 2, 4, 20), AxisRange("x", 3, 5, 30)], rows=None)
    assert [case.inputs["x"].shape for case in cases] == [(2, 3, 4, 5), (2, 3, 20, 30), (2, 3, 20, 5), (2, 3, 4, 30)]


def test_without_ranges_there_are_no_edges():
    assert edge_cases({"x": np.zeros((2, 3))}, [], rows=3) == ()


def test_random_data_has_sizes_inside_the_ranges_and_the_edges_come_after_it():
    assert typical_sizes([AxisRange("ids", 1, 20, 40)], IDS).shape == (ANY, 20)
    assert typical_sizes([AxisRange("ids", 1, 1, 4)], IDS).shape == (ANY, 4)
    cases = cases_for((IDS, MASK), Options(dynamic=("ids:1=2..6", "mask:1=2..6"), max_rows=8), batched=True)
    assert [case.inputs["ids"].shape for case in cases] == [(1, 6), (3, 6), (8, 6), (3, 2), (3, 6)]
