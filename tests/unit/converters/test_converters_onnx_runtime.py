"""Sizes and values that only the model itself can judge, put to real sessions."""

import numpy as np
import pytest
from onnx import helper

from cluster.errors import InvalidRequest
from cluster.tensors import ANY, Signature, TensorSpec
from converters.runtime import open_runtime
from onnx_models import model_of, write_artifact


def floats(*shape):
    return np.ones(shape, "f4")


def runtime_of(path, node, sample, output=(ANY, ANY), constants=None):
    """A batched runtime of one node; every dimension of its inputs is free."""
    names = {"float32": "FP32", "int64": "INT64"}
    inputs = tuple(TensorSpec(k, names[str(v.dtype)], (ANY,) * v.ndim) for k, v in sample.items())
    outputs = (TensorSpec("y", inputs[0].dtype, output),)
    model = model_of([node], list(inputs), list(outputs), constants)
    signature = Signature(inputs, outputs, batched=True, max_rows=8)
    runtime = open_runtime(write_artifact(path, model, signature, sample))
    assert len(runtime.run(tuple(sample.values()))) == 1
    return runtime


def test_inputs_whose_free_dimensions_must_agree_and_do_not_are_refused(tmp_path):
    node = helper.make_node("Add", ["a", "b"], ["y"])
    runtime = runtime_of(tmp_path, node, {"a": floats(1, 3), "b": floats(1, 3)})
    with pytest.raises(InvalidRequest, match=r"refuses these inputs: Add: .*2 by 3"):
        runtime.run((floats(1, 3), floats(1, 2)))
    assert runtime.run((floats(1, 2), floats(1, 2)))[0].tolist() == [[2, 2]]


def test_a_free_dimension_that_is_fixed_inside_is_refused(tmp_path):
    shape, weight = np.array([-1, 4], "i8"), floats(4, 2)
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    runtime = runtime_of(tmp_path / "reshape", reshape, {"x": floats(1, 4)}, constants={"shape": shape})
    with pytest.raises(InvalidRequest, match=r"Reshape: .*\{1,3\}"):
        runtime.run((floats(1, 3),))
    matmul = helper.make_node("MatMul", ["x", "weight"], ["y"])
    runtime = runtime_of(tmp_path / "matmul", matmul, {"x": floats(1, 4)}, constants={"weight": weight})
    with pytest.raises(InvalidRequest, match=r"MatMul: .*mismatch"):
        runtime.run((floats(1, 3),))


def test_sizes_that_would_change_the_number_of_rows_are_refused(tmp_path):
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    runtime = runtime_of(tmp_path, node, {"x": floats(2, 4)}, constants={"shape": np.array([-1, 4], "i8")})
    with pytest.raises(InvalidRequest, match=r"from 2 rows .* y of shape \[1, 4\]"):
        runtime.run((floats(2, 2),))


@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_an_integer_division_by_zero_is_refused_and_the_runtime_lives_on(op, tmp_path):
    ones = np.ones(1, "i8")
    runtime = runtime_of(tmp_path, helper.make_node(op, ["a", "b"], ["y"]), {"a": ones, "b": ones}, output=(ANY,))
    with pytest.raises(InvalidRequest, match=f"{op}: .*zero"):
        runtime.run((ones, ones * 0))
    assert runtime.run((ones * 3, ones * 2))


def test_an_index_outside_its_table_is_refused(tmp_path):
    table = np.zeros((4, 2), "i8")
    for op in ("Gather", "GatherElements"):
        node = helper.make_node(op, ["table", "index"], ["y"])
        output = (ANY, ANY, 2) if op == "Gather" else (ANY, ANY)
        runtime = runtime_of(tmp_path / op, node, {"index": np.array([[3]])}, output=output, constants={"table": table})
        with pytest.raises(InvalidRequest, match=f"{op}: "):
            runtime.run((np.array([[99]]),))
