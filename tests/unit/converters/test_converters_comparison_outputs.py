"""What two models are asked, and which of their outputs are compared."""

import numpy as np
import pytest

from cluster.tensors import ANY, Signature, TensorSpec
from converters.candidate import Options
from converters.proof.comparison import _cases, _left_out, _outputs


def signature(*outputs, max_rows=8):
    specs = tuple(TensorSpec(name, "FP32", (ANY, 3)) for name in outputs)
    return Signature((TensorSpec("x", "FP32", (ANY, 4)),), specs, max_rows > 1, max_rows)


def notes(first, second):
    return _left_out(("a.onnx", "b.onnx"), first, second, _outputs(first, second))


def test_each_side_is_told_what_only_it_has():
    assert notes(signature("y"), signature("y", "z")) == ["outputs that only b.onnx has, not compared: z"]
    assert notes(signature("y", "z"), signature("y")) == ["outputs that only a.onnx has, not compared: z"]
    assert len(notes(signature("y", "u"), signature("y", "v"))) == 2


def test_nothing_is_told_where_all_outputs_are_compared():
    assert notes(signature("y", "z"), signature("z", "y")) == []
    assert notes(signature("y", "z"), signature("p", "q")) == []  # paired by their places


@pytest.mark.parametrize(("first", "second", "most"), [(64, 4, 4), (4, 64, 4), (64, 1, 64)])
def test_no_call_has_more_rows_than_each_of_both_takes(tmp_path, first, second, most):
    """The second of (64, 1) does not share calls, and takes as many rows in one request as there are."""
    np.savez(tmp_path / "rows.npz", x=np.zeros((100, 4), "f4"))
    sides = signature("y", max_rows=first), signature("y", max_rows=second)
    cases = _cases(*sides, [0], Options(sample=tmp_path / "rows.npz"))
    assert max(case.rows for case in cases) == most
