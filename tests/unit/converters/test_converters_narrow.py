"""BF16 and FP8 models for TensorRT, and the copies that ONNX Runtime can run in their place."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cluster.errors import ConversionFailed
from cluster.tensors import ANY, TensorSpec
from converters.build import silent
from converters.candidate import Candidate, Options
from converters.onnx import bf16 as onnx_bf16
from converters.onnx import fp8_trt as onnx_fp8_trt
from onnx_models import mlp_model, model_of

ROWS = np.random.default_rng(0).standard_normal((16, 4)).astype("f4")


def saved(model, path):
    onnx.save(model, path)
    return path


def answers(path, **inputs):
    return ort.InferenceSession(str(path)).run(None, inputs)


def made(step, model, tmp_path, **options):
    np.savez(tmp_path / "rows.npz", x=ROWS)
    (tmp_path / "work").mkdir()
    candidate = Candidate(saved(model, tmp_path / "m.onnx"), "fp32", {})
    options = Options(calibrate=tmp_path / "rows.npz", max_rows=8, **options)
    return step.convert(candidate, tmp_path / "work", options, silent)


def conv_model():
    """A convolution, a value that only BF16 can hold among its weights, and a resize whose scales must stay FP32."""
    rng = np.random.default_rng(1)
    x, y = TensorSpec("x", "FP32", (ANY, 3, 6, 6)), TensorSpec("y", "FP32", (ANY, 4, 12, 12))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["c", "large"], ["m"]),
        helper.make_node("Resize", ["m", "", "scales"], ["y"], mode="nearest"),
    ]
    constants = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype("f4") * 1e-6,
        "large": np.array(3e6, "f4"),
        "scales": np.array([1, 1, 2, 2], "f4"),
    }
    return model_of(nodes, [x], [y], constants)


def test_bf16_rounds_to_the_nearest_and_ties_to_even():
    values = np.concatenate([np.random.default_rng(0).standard_normal(1000) * 1e5, [0, np.inf, -np.inf, 3.0, 1 / 3]])
    values = values.astype("f4")
    ours = (onnx_bf16._bf16(values).astype("<u4") << 16).view("<f4")
    np.testing.assert_array_equal(ours, values.astype(ml_dtypes.bfloat16).astype("f4"))
    largest = np.array([1, -1], "f4") * np.finfo("f4").max
    (up, down) = (onnx_bf16._bf16(largest).astype("<u4") << 16).view("<f4")
    assert np.isfinite([up, down]).all() and up == -down > 3.38e38
    assert np.isnan((onnx_bf16._bf16(np.array([np.nan], "f4")).astype("<u4") << 16).view("<f4")).all()


def test_a_bf16_model_is_bf16_inside_and_fp32_outside(tmp_path):
    found = made(onnx_bf16, mlp_model(hidden=32), tmp_path)
    model = onnx.load(found.path)
    assert found.precision == "bf16" and found.unexecuted.startswith("not executed here: ")
    assert {t.data_type for t in model.graph.initializer} == {TensorProto.BFLOAT16}
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {TensorProto.FLOAT}
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["model.onnx"]


def test_the_copy_of_a_bf16_model_answers_as_bf16_does(tmp_path):
    source = mlp_model(hidden=32)
    found = made(onnx_bf16, source, tmp_path)
    (got,) = answers(found.stand_in, x=ROWS)
    (exact,) = answers(tmp_path / "m.onnx", x=ROWS)

    def bf16(array):
        return array.astype(ml_dtypes.bfloat16).astype("f4")

    weights = {t.name: bf16(numpy_helper.to_array(t)) for t in source.graph.initializer}
    value = bf16(ROWS)
    for node in source.graph.node:
        if node.op_type == "Relu":
            value = np.maximum(value, 0)
            continue
        attributes = {a.name: a.i for a in node.attribute}
        matrix = weights[node.input[1]].T if attributes.get("transB") else weights[node.input[1]]
        value = bf16(value @ matrix + weights[node.input[2]])
    np.testing.assert_allclose(got, value, rtol=2**-7, atol=1e-2)
    assert np.abs(got - exact).max() > 1e-4  # the rounding is there


def test_what_fp16_cannot_hold_survives_in_bf16_and_scales_stay_exact(tmp_path):
    found = made(onnx_bf16, conv_model(), tmp_path)
    image = np.random.default_rng(2).standard_normal((2, 3, 6, 6)).astype("f4")
    (got,), (exact,) = answers(found.stand_in, x=image), answers(tmp_path / "m.onnx", x=image)
    assert np.isfinite(got).all() and np.abs(got - exact).max() < 0.03 * np.abs(exact).max()
    kinds = {t.name: t.data_type for t in onnx.load(found.path).graph.initializer}
    assert kinds["large"] == kinds["w"] == TensorProto.BFLOAT16 and kinds["scales"] == TensorProto.FLOAT


def test_fp8_nodes_have_fp8_zero_points_and_scales_for_448(tmp_path):
    found = made(onnx_fp8_trt, mlp_model(hidden=32), tmp_path)
    graph = onnx.load(found.path).graph
    tensors = {t.name: t for t in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert nodes and {tensors[node.input[2]].data_type for node in nodes} == {TensorProto.FLOAT8E4M3FN}
    first = next(node for node in nodes if node.input[0] == "x")
    assert numpy_helper.to_array(tensors[first.input[1]]) == pytest.approx(np.abs(ROWS).max() / 448, rel=1e-5)
    assert found.precision == "fp8" and found.unexecuted.startswith("not executed here: ")


def test_the_copy_of_an_fp8_model_rounds_where_the_model_does(tmp_path):
    found = made(onnx_fp8_trt, mlp_model(hidden=32), tmp_path)
    (got,), (exact,) = answers(found.stand_in, x=ROWS), answers(tmp_path / "m.onnx", x=ROWS)
    noise = 10 * np.log10(np.square(exact).sum() / np.square(exact - got).sum())
    assert 20 < noise < 45
    assert not any("QuantizeLinear" in node.op_type for node in onnx.load(found.stand_in).graph.node)


def test_weights_of_a_convolution_are_scaled_per_channel(tmp_path):
    image = np.random.default_rng(2).standard_normal((8, 3, 6, 6)).astype("f4")
    np.savez(tmp_path / "images.npz", x=image)
    (tmp_path / "work").mkdir()
    candidate = Candidate(saved(conv_model(), tmp_path / "m.onnx"), "fp32", {})
    options = Options(calibrate=tmp_path / "images.npz", max_rows=8)
    found = onnx_fp8_trt.convert(candidate, tmp_path / "work", options, silent)
    shapes = [tuple(t.dims) for t in onnx.load(found.path).graph.initializer if t.name.endswith("scale")]
    assert (4,) in shapes
    (got,), (exact,) = answers(found.stand_in, x=image), answers(tmp_path / "m.onnx", x=image)
    assert np.abs(got - exact).max() < 0.15 * np.abs(exact).max()


def test_what_is_narrow_already_or_too_old_is_refused(tmp_path):
    path = saved(mlp_model(), tmp_path / "m.onnx")
    with pytest.raises(ConversionFailed, match="bf16: expected an fp32 model, got fp16"):
        onnx_bf16.convert(Candidate(path, "fp16", {}), tmp_path, Options(), silent)
    model = mlp_model()
    model.opset_import[0].version = 18
    with pytest.raises(ConversionFailed, match="expected a model of opset 19 or newer, got 18"):
        made(onnx_fp8_trt, model, tmp_path)
