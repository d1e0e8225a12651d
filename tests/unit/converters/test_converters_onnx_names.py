"""Names of an ONNX graph's interface."""

import numpy as np
import onnxruntime as ort
from onnx import helper

from cluster.tensors import ANY, TensorSpec
from converters.onnx.names import drop_traces, name_dimensions, name_interface
from onnx_models import model_of, slow_model

X, Y = TensorSpec("x", "FP32", (ANY, 2)), TensorSpec("y", "FP32", (ANY, 2))


def run(model, **inputs):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def test_a_wanted_name_that_is_taken_inside_moves_the_value_inside():
    nodes = [helper.make_node("Neg", ["x"], ["answer"]), helper.make_node("Exp", ["answer"], ["y"])]
    model = model_of(nodes, [X], [Y])
    name_interface(model, ["image"], ["answer"])
    x = np.ones((1, 2), "f4")
    np.testing.assert_allclose(run(model, image=x)["answer"], np.exp(-x))


def test_an_output_given_twice_and_an_input_given_back_become_values_of_their_own():
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], [X], [Y])
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output.add().CopyFrom(model.graph.input[0])
    name_interface(model, ["x"], ["a", "b", "c"])
    x = np.ones((2, 2), "f4")
    answers = run(model, x=x)
    np.testing.assert_array_equal(answers["a"], -x)
    np.testing.assert_array_equal(answers["b"], -x)
    np.testing.assert_array_equal(answers["c"], x)


def test_two_names_can_be_exchanged():
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], [X], [Y])
    name_interface(model, ["y"], ["x"])
    np.testing.assert_array_equal(run(model, y=np.ones((1, 2), "f4"))["x"], -np.ones((1, 2), "f4"))


def test_names_inside_subgraphs_follow():
    model = slow_model(2)
    name_interface(model, ["turn"], ["state_in"])  # both are used inside the loop
    x = np.ones((1, 4), "f4")
    np.testing.assert_array_equal(run(model, turn=x)["state_in"], x)


def test_free_dimensions_get_the_users_names():
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], [X], [Y])
    name_dimensions(model, [{0: "batch"}])
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_no_trace_of_the_source_stays():
    model = model_of([helper.make_node("Neg", ["x"], ["y"], doc_string="home/me/model.py")], [X], [Y])
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "stack", "home/me/model.py"
    drop_traces(model)
    assert b"home/me" not in model.SerializeToString()
