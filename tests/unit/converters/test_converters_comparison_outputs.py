"""Outputs that only one of two models has are named, whichever it is."""

from cluster.tensors import ANY, Signature, TensorSpec
from converters.proof.comparison import _left_out, _outputs


def signature(*outputs):
    specs = tuple(TensorSpec(name, "FP32", (ANY, 3)) for name in outputs)
    return Signature((TensorSpec("x", "FP32", (ANY, 4)),), specs, True, 8)


def notes(first, second):
    return _left_out(("a.onnx", "b.onnx"), first, second, _outputs(first, second))


def test_each_side_is_told_what_only_it_has():
    assert notes(signature("y"), signature("y", "z")) == ["outputs that only b.onnx has, not compared: z"]
    assert notes(signature("y", "z"), signature("y")) == ["outputs that only a.onnx has, not compared: z"]
    assert len(notes(signature("y", "u"), signature("y", "v"))) == 2


def test_nothing_is_told_where_all_outputs_are_compared():
    assert notes(signature("y", "z"), signature("z", "y")) == []
    assert notes(signature("y", "z"), signature("p", "q")) == []  # paired by their places
