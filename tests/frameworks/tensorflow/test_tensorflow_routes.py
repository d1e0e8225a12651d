"""Models go to TensorFlow and TFLite, and come from TensorFlow and Keras, with the same answers."""

import importlib

import documented
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cluster.artifact import Artifact
from cluster.errors import ConversionFailed, EngineFailed, InvalidRequest
from cluster.tensors import ANY, TensorSpec
from converters.build import convert
from converters.candidate import Options
from converters.proof.comparison import compare_artifacts
from converters.runtime import open_runtime
from onnx_models import mlp_model, model_of

tf = pytest.importorskip("tensorflow", reason="run in the environment that `make env-tensorflow` makes")
keras = pytest.importorskip("keras")

QUICK = Options(profile_s=0.05, max_rows=8)

MY_MODEL = """
import torch

def build():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 7, stride=8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    )
"""


def save(model, path):
    onnx.save(model, path)
    return path


def cnn():
    """image FP32 [rows, 3, 16, 16] -> scores FP32 [rows, 5], with the parts of small image networks."""
    draw = np.random.default_rng(0)
    constants = {
        "w1": draw.standard_normal((8, 3, 3, 3)).astype("f4") * 0.3,
        "b1": draw.standard_normal(8).astype("f4"),
        "w2": draw.standard_normal((8, 1, 3, 3)).astype("f4") * 0.3,
        "w3": draw.standard_normal((5, 16)).astype("f4") * 0.3,
        "b3": draw.standard_normal(5).astype("f4"),
        "half": np.full((8, 1, 1), 0.5, "f4"),
        **{name: np.abs(draw.standard_normal(8)).astype("f4") + 0.5 for name in ("s", "m", "v")},
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "s", "b1", "m", "v"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Mul", ["c2", "half"], ["h2"]),
        helper.make_node("Add", ["h2", "p1"], ["a2"]),
        helper.make_node("Concat", ["a2", "p1"], ["cat"], axis=1),
        helper.make_node("GlobalAveragePool", ["cat"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["scores"], transB=1),
    ]
    inputs, outputs = [TensorSpec("image", "FP32", (ANY, 3, 16, 16))], [TensorSpec("scores", "FP32", (ANY, 5))]
    return model_of(nodes, inputs, outputs, constants)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The CNN in every form, converted by one command."""
    folder = tmp_path_factory.mktemp("cnn")
    images = np.random.default_rng(1).standard_normal((48, 3, 16, 16)).astype("f4")
    np.savez(folder / "images.npz", image=images)
    options = Options(profile_s=0.05, max_rows=8, calibrate=folder / "images.npz", tolerance={"top1": 0.7})
    targets = ("tensorflow", "tflite", "tflite-fp16", "tflite-dynamic", "tflite-int8")
    artifacts = convert(save(cnn(), folder / "m.onnx"), folder / "out", targets, options)
    return folder, dict(zip(targets, artifacts, strict=True))


def test_one_command_makes_every_form_of_a_network(network):
    _, made = network
    assert {name: artifact.manifest.format for name, artifact in made.items()} == {
        "tensorflow": "tensorflow",
        **dict.fromkeys(set(made) - {"tensorflow"}, "tflite"),
    }
    for artifact in made.values():
        signature = artifact.manifest.signature
        assert signature.inputs == (TensorSpec("image", "FP32", (ANY, 3, 16, 16)),)
        assert signature.outputs == (TensorSpec("scores", "FP32", (ANY, 5)),)
        assert signature.batched and artifact.parity()["kind"] == "onnx" and artifact.parity()["passed"]
    noise = {name: artifact.parity()["outputs"][0]["sqnr_db"] for name, artifact in made.items()}
    assert noise["tensorflow"] > 100 and noise["tflite"] > 100
    assert noise["tflite"] > noise["tflite-fp16"] > noise["tflite-int8"] > 15


def test_a_network_is_transposed_at_its_ends_only(network):
    _, made = network
    loaded = tf.saved_model.load(str(made["tensorflow"].model_path.parent))
    graph = loaded.signatures["serving_default"].graph.as_graph_def()
    nodes = [node.op for function in graph.library.function for node in function.node_def]
    assert nodes.count("Transpose") == 1


def test_the_saved_model_comes_back_as_onnx_and_goes_to_tflite_directly(network, tmp_path):
    _, made = network
    source = made["tensorflow"].model_path.parent
    back, lite = convert(source, tmp_path / "back", ("onnx", "tflite"), QUICK)
    x = np.random.default_rng(2).standard_normal((3, 3, 16, 16)).astype("f4")
    (expected,) = open_runtime(made["tensorflow"]).run((x,))
    for artifact in (back, lite):
        assert artifact.parity()["kind"] == "tensorflow"
        np.testing.assert_allclose(open_runtime(artifact).run((x,))[0], expected, rtol=1e-3, atol=1e-4)


def test_a_gpu_that_this_tensorflow_does_not_see_is_refused(network):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees a GPU, which tests/gpu is for")
    with pytest.raises(EngineFailed, match="accelerator: expected gpu, but TensorFlow sees none"):
        open_runtime(network[1]["tensorflow"], accelerator="gpu")


def test_a_tflite_file_from_elsewhere_is_checked_and_served(network, tmp_path):
    _, made = network
    (artifact,) = convert(made["tflite"].model_path, tmp_path / "out", ("tflite",), QUICK)
    assert artifact.parity()["kind"] == "self" and artifact.manifest.signature.batched


def test_a_saved_model_folder_and_a_tflite_file_are_compared_as_they_are(network, tmp_path):
    _, made = network
    saved, lite = made["tensorflow"].model_path.parent, made["tflite"].model_path
    told = []
    found = compare_artifacts(saved, lite, QUICK, told.append)
    assert found.failures == () and {"saved_model is run as tensorflow", "model.tflite is run as tflite"} <= set(told)
    assert {case["inputs"] for case in found.parity["cases"]} == {"sample"}  # the SavedModel's, which was drawn
    off = compare_artifacts(made["tensorflow"].path, made["tflite-int8"].model_path, QUICK, told.append)
    assert any("signal to noise" in text for text in off.failures)  # INT8 is not near enough for FP32's tolerance


@pytest.mark.parametrize("page", ["README.md", "docs/converters.md"])
def test_the_classic_chain_is_one_command_as_its_page_shows_it(page, tmp_path, monkeypatch):
    """From PyTorch, or from ONNX: an engine for the GPU that will serve it, a SavedModel and a TFLite file."""
    arguments = documented.command(page, "--to tensorrt-int8,tensorflow,tflite")
    from_torch = "weights.safetensors" in arguments
    assert arguments[:2] == (["convert", "weights.safetensors"] if from_torch else ["convert", "model.onnx"])
    images = np.random.default_rng(1).standard_normal((8, 3, 16, 16)).astype("f4")
    if from_torch:
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        (tmp_path / "mymodel.py").write_text(MY_MODEL)
        monkeypatch.syspath_prepend(tmp_path)
        network = importlib.import_module("mymodel").build()
        pytest.importorskip("safetensors.torch").save_file(network.state_dict(), tmp_path / "weights.safetensors")
        images = np.random.default_rng(1).standard_normal((8, 3, 224, 224)).astype("f4")
        np.savez(tmp_path / "photos.npz", image=images)
    else:
        save(cnn(), tmp_path / "model.onnx")
        np.savez(tmp_path / "rows.npz", image=images)
    monkeypatch.chdir(tmp_path)
    printed = documented.run_quickly([*arguments, "--max-rows", "4"], monkeypatch)
    made = {name: Artifact.read(tmp_path / arguments[-1] / name) for name in ("tensorrt-int8", "tensorflow", "tflite")}
    for name, artifact in made.items():
        artifact.verify()
        parity = artifact.parity()
        assert parity["passed"] and parity["kind"] == ("torch" if from_torch else "onnx") and name in printed
        assert artifact.manifest.signature.inputs == (TensorSpec("image", "FP32", (ANY, *images.shape[1:])),)
        assert parity["executed"] is (name != "tensorrt-int8")
    assert made["tensorrt-int8"].manifest.extra["engine"]["precision"] == "int8"
    assert "not built here" in printed


def attention():
    """ids, mask, types INT64 [rows, length] -> vector FP32 [rows, 8], scores FP32 [rows, length, length]."""
    draw = np.random.default_rng(0)
    constants = {
        "table": draw.standard_normal((50, 8)).astype("f4"),
        "kinds": draw.standard_normal((2, 8)).astype("f4"),
        **{name: draw.standard_normal((8, 8)).astype("f4") * 0.5 for name in ("q", "k", "v")},
        **{name: np.ones(8, "f4") for name in ("scale",)},
        "one": np.array(1, "f4"),
        "large": np.array(-1e4, "f4"),
        "root": np.array(8**0.5, "f4"),
        "two": np.array([2], "i8"),
        "first": np.array([1], "i8"),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e1"]),
        helper.make_node("Gather", ["kinds", "types"], ["e2"]),
        helper.make_node("Add", ["e1", "e2"], ["e"]),
        helper.make_node("LayerNormalization", ["e", "scale"], ["n"]),
        *(helper.make_node("MatMul", ["n", name], [f"{name}_"]) for name in ("q", "k", "v")),
        helper.make_node("Transpose", ["k_"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q_", "kt"], ["raw"]),
        helper.make_node("Div", ["raw", "root"], ["scaled"]),
        helper.make_node("Cast", ["mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "kept"], ["gone"]),
        helper.make_node("Mul", ["gone", "large"], ["penalty"]),
        helper.make_node("Unsqueeze", ["penalty", "first"], ["wide"]),
        helper.make_node("Add", ["scaled", "wide"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["scores"], axis=-1),
        helper.make_node("MatMul", ["scores", "v_"], ["mixed"]),
        helper.make_node("Gelu", ["mixed"], ["g"]),
        helper.make_node("ReduceMean", ["g", "first"], ["vector"], keepdims=0),
    ]
    inputs = [TensorSpec(name, "INT64", (ANY, ANY)) for name in ("ids", "mask", "types")]
    outputs = [TensorSpec("vector", "FP32", (ANY, 8)), TensorSpec("scores", "FP32", (ANY, ANY, ANY))]
    del constants["two"]
    return model_of(nodes, inputs, outputs, constants)


def test_three_inputs_with_two_free_axes_keep_names_order_and_sizes(tmp_path):
    made = convert(save(attention(), tmp_path / "m.onnx"), tmp_path / "out", ("tensorflow", "tflite"), QUICK)
    draw = np.random.default_rng(0)
    for artifact in made:
        signature = artifact.manifest.signature
        assert [(spec.name, spec.shape) for spec in signature.inputs] == [
            ("ids", (-1, -1)),
            ("mask", (-1, -1)),
            ("types", (-1, -1)),
        ]
        assert [spec.name for spec in signature.outputs] == ["vector", "scores"]
        runtime = open_runtime(artifact)
        for rows, length in ((1, 1), (2, 5), (4, 33)):
            ids = draw.integers(0, 50, (rows, length))
            vector, scores = runtime.run((ids, np.ones_like(ids), np.zeros_like(ids)))
            assert vector.shape == (rows, 8) and scores.shape == (rows, length, length)
            np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)


def test_names_that_python_does_not_allow_are_kept(tmp_path):
    specs = (
        [TensorSpec("input.1", "FP32", (ANY, 2))],
        [TensorSpec("out/0", "FP32", (ANY, 2)), TensorSpec("class", "INT64", (ANY,))],
    )
    nodes = [
        helper.make_node("Relu", ["input.1"], ["out/0"]),
        helper.make_node("ArgMax", ["input.1"], ["class"], axis=1, keepdims=0),
    ]
    (artifact,) = convert(save(model_of(nodes, *specs), tmp_path / "m.onnx"), tmp_path / "out", ("tensorflow",), QUICK)
    signature = artifact.manifest.signature
    assert [spec.name for spec in signature.inputs] == ["input.1"]
    assert [spec.name for spec in signature.outputs] == ["out/0", "class"]


def test_no_rows_axis_text_and_half_precision(tmp_path):
    fixed = model_of(
        [helper.make_node("ReduceSum", ["x", "first"], ["y"], keepdims=0)],
        [TensorSpec("x", "FP16", (2, 3))],
        [TensorSpec("y", "FP16", (3,))],
        {"first": np.array([0], "i8")},
    )
    (half,) = convert(save(fixed, tmp_path / "h.onnx"), tmp_path / "half", ("tensorflow",), QUICK)
    assert not half.manifest.signature.batched and half.manifest.signature.inputs[0].dtype == "FP16"
    words = [TensorSpec("t", "BYTES", (ANY, 1))], [TensorSpec("u", "BYTES", (ANY, 1))]
    text = save(model_of([helper.make_node("Identity", ["t"], ["u"])], *words), tmp_path / "t.onnx")
    (same,) = convert(text, tmp_path / "text", ("tensorflow",), QUICK)
    (answer,) = open_runtime(same).run((np.array([["zwölf"], [b"\xff"]], dtype=object),))
    assert answer.tolist() == [["zwölf".encode()], [b"\xff"]]


def test_operators_without_a_counterpart_are_named_with_their_nodes(tmp_path):
    nodes = [
        helper.make_node("GridSample", ["x", "grid"], ["y"], name="warp"),
        helper.make_node("Det", ["x"], ["d"], name="volume"),
    ]
    specs = [TensorSpec("x", "FP32", (ANY, 1, 2, 2)), TensorSpec("grid", "FP32", (ANY, 2, 2, 2))]
    outputs = [TensorSpec("y", "FP32", (ANY, 1, 2, 2)), TensorSpec("d", "FP32", (ANY, 1))]
    file = save(model_of(nodes, specs, outputs), tmp_path / "m.onnx")
    with pytest.raises(ConversionFailed, match=r"GridSample \(node 'warp' \(GridSample\)\); Det \(node 'volume'"):
        convert(file, tmp_path / "out", ("tensorflow",), QUICK)


def test_tflite_int8_needs_calibration_data(tmp_path):
    with pytest.raises(InvalidRequest, match="calibrate: tflite-int8 needs calibration data"):
        convert(save(mlp_model(), tmp_path / "m.onnx"), tmp_path / "out", ("tflite-int8",), QUICK)


def branches():
    wide, deep = keras.Input((4,), name="wide"), keras.Input((6,), name="deep")
    joined = keras.layers.Concatenate()([wide, keras.layers.Dense(5, activation="gelu")(deep)])
    hidden = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(joined))
    return keras.Model([wide, deep], {"score": keras.layers.Dense(2)(hidden), "again": hidden})


def test_a_keras_model_with_two_inputs_answers_as_keras_does(tmp_path):
    keras.utils.set_random_seed(0)
    branches().save(tmp_path / "m.keras")
    onnx_form, saved, lite = convert(tmp_path / "m.keras", tmp_path / "out", ("onnx", "tensorflow", "tflite"), QUICK)
    for artifact in (onnx_form, saved, lite):
        assert artifact.parity()["kind"] == "keras" and artifact.parity()["passed"]
        assert [spec.name for spec in artifact.manifest.signature.inputs] == ["wide", "deep"]
        assert {spec.name for spec in artifact.manifest.signature.outputs} == {"score", "again"}
        assert artifact.manifest.signature.batched


def test_a_keras_file_with_code_in_it_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / "m.keras")
    with pytest.raises(ConversionFailed, match=r"m\.keras: Keras cannot load it: .*--trust-pickle"):
        convert(tmp_path / "m.keras", tmp_path / "out", ("onnx",), QUICK)


def test_a_saved_model_that_reads_files_is_refused(tmp_path):
    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.string, name="path")])
        def read(self, path):
            return {"content": tf.map_fn(tf.io.read_file, path[:, 0])}

    module = Reader()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"serving_default": module.read})
    with pytest.raises(ConversionFailed, match="its graph holds ReadFile"):
        convert(tmp_path / "m", tmp_path / "out", ("tensorflow",), QUICK)


def test_a_saved_model_whose_input_may_have_any_number_of_dimensions_is_refused(tmp_path):
    module = tf.Module()
    signature = [tf.TensorSpec(None, tf.float32, name="x")]
    module.double = tf.function(lambda x: {"y": x * 2.0}, input_signature=signature)
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.double)
    with pytest.raises(InvalidRequest, match="x: its number of dimensions is not stated"):
        convert(tmp_path / "saved", tmp_path / "out", ("tensorflow",), QUICK)
