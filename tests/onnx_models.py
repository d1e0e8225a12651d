"""Small ONNX artifacts for tests, built without torch and without measuring anything."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cluster.artifact import PARITY, PROFILE, SAMPLE, Artifact, Manifest, hash_files, write_manifest
from cluster.tensors import ANY, Signature, TensorSpec

# Wire and engine tests want a curve that looks like a real small model's: a fixed part and a part per row.
COSTS = {1: 0.0002, 2: 0.00022, 4: 0.00026, 8: 0.00034, 16: 0.0005, 32: 0.0008, 64: 0.0015}

_ELEMENT = {
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "FP16": TensorProto.FLOAT16,
    "INT64": TensorProto.INT64,
    "INT32": TensorProto.INT32,
    "BOOL": TensorProto.BOOL,
    "BYTES": TensorProto.STRING,
}


def value(spec: TensorSpec) -> onnx.ValueInfoProto:
    """An ONNX graph input or output for `spec`; free dimensions become symbols (`rows` first)."""
    shape = [d if d != ANY else ("rows" if i == 0 else f"{spec.name}_{i}") for i, d in enumerate(spec.shape)]
    return helper.make_tensor_value_info(spec.name, _ELEMENT[spec.dtype], shape)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    constants: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """An opset 20 model of these nodes."""
    graph = helper.make_graph(
        nodes,
        "model",
        [value(s) for s in inputs],
        [value(s) for s in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_artifact(
    path: Path,
    model: onnx.ModelProto,
    signature: Signature,
    sample: Mapping[str, np.ndarray],
    costs: Mapping[int, float] | None = None,
    labels: tuple[str, ...] = (),
) -> Artifact:
    """Write `model` as an artifact directory whose profile says `costs`."""
    path.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path / "model.onnx")
    np.savez(path / SAMPLE, **sample)
    (path / PARITY).write_text('{"kind": "none"}')
    points = {str(rows): s for rows, s in (COSTS if costs is None else costs).items()}
    (path / PROFILE).write_text(json.dumps({"devices": {"cpu": {"seconds_by_rows": points}}}))
    manifest = Manifest(
        format="onnx",
        precision="fp32",
        model_file="model.onnx",
        signature=signature,
        source={"kind": "test", "sha256": ""},
        tools={"onnx": onnx.__version__},
        files=hash_files(path),
        created="2000-01-01T00:00:00+00:00",
        labels=labels,
    )
    return write_manifest(path, manifest)


def mlp_model(hidden: int = 16, seed: int = 0) -> onnx.ModelProto:
    """x FP32 [rows, 4] -> y FP32 [rows, 3]: two dense layers with fixed random weights."""
    draw = np.random.default_rng(seed)
    constants = {
        "w1": draw.standard_normal((4, hidden)).astype("f4"),
        "b1": draw.standard_normal(hidden).astype("f4"),
        "w2": draw.standard_normal((hidden, 3)).astype("f4"),
        "b2": draw.standard_normal(3).astype("f4"),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    return model_of(nodes, [TensorSpec("x", "FP32", (ANY, 4))], [TensorSpec("y", "FP32", (ANY, 3))], constants)


def mlp_artifact(
    path: Path,
    *,
    hidden: int = 16,
    seed: int = 0,
    max_rows: int = 64,
    costs: Mapping[int, float] | None = None,
    labels: tuple[str, ...] = (),
) -> Artifact:
    """`mlp_model` as an artifact; another `seed` is another model."""
    signature = Signature(
        (TensorSpec("x", "FP32", (ANY, 4)),), (TensorSpec("y", "FP32", (ANY, 3)),), batched=True, max_rows=max_rows
    )
    sample = {"x": np.linspace(-1, 1, 16, dtype="f4").reshape(4, 4)}
    return write_artifact(path, mlp_model(hidden, seed), signature, sample, costs, labels)


def two_input_artifact(path: Path, *, max_rows: int = 32) -> Artifact:
    """a FP32 [rows, 2], b INT64 [rows, width] -> sum FP32 [rows, 2] = a + total of b's row, twice INT64 = 2 b."""
    inputs = (TensorSpec("a", "FP32", (ANY, 2)), TensorSpec("b", "INT64", (ANY, ANY)))
    outputs = (TensorSpec("sum", "FP32", (ANY, 2)), TensorSpec("twice", "INT64", (ANY, ANY)))
    nodes = [
        helper.make_node("ReduceSum", ["b", "last"], ["total"], keepdims=1),
        helper.make_node("Cast", ["total"], ["total_f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "total_f"], ["sum"]),
        helper.make_node("Add", ["b", "b"], ["twice"]),
    ]
    model = model_of(nodes, list(inputs), list(outputs), {"last": np.array([1], dtype="i8")})
    sample = {"a": np.ones((2, 2), "f4"), "b": np.arange(6, dtype="i8").reshape(2, 3)}
    return write_artifact(path, model, Signature(inputs, outputs, batched=True, max_rows=max_rows), sample)


def fixed_artifact(path: Path) -> Artifact:
    """x FP32 [2, 3] -> y FP32 [3] = the sum over the first axis: not batched, one request at a time."""
    inputs, outputs = (TensorSpec("x", "FP32", (2, 3)),), (TensorSpec("y", "FP32", (3,)),)
    nodes = [helper.make_node("ReduceSum", ["x", "first"], ["y"], keepdims=0)]
    model = model_of(nodes, list(inputs), list(outputs), {"first": np.array([0], dtype="i8")})
    sample = {"x": np.arange(6, dtype="f4").reshape(2, 3)}
    return write_artifact(path, model, Signature(inputs, outputs, batched=False, max_rows=1), sample, {1: 0.0001})


def text_artifact(path: Path, *, max_rows: int = 16) -> Artifact:
    """text BYTES [rows, 1] -> same BYTES [rows, 1]."""
    spec_in, spec_out = TensorSpec("text", "BYTES", (ANY, 1)), TensorSpec("same", "BYTES", (ANY, 1))
    model = model_of([helper.make_node("Identity", ["text"], ["same"])], [spec_in], [spec_out])
    signature = Signature((spec_in,), (spec_out,), batched=True, max_rows=max_rows)
    return write_artifact(path, model, signature, {"text": np.array([["one"], ["zwölf"]])})


def slow_model(loops: int) -> onnx.ModelProto:
    """x FP32 [rows, 4] -> y = x, after `loops` matrix products that take the same time for any number of rows."""
    side = 96
    state = helper.make_tensor_value_info("state_in", TensorProto.FLOAT, [side, side])
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state_in", "turn"], ["state_out"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            state,
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [side, side]),
        ],
    )
    nodes = [
        # The state depends on x, so that no optimiser can compute the loop beforehand.
        helper.make_node("ReduceSum", ["x"], ["all"], keepdims=0),
        helper.make_node("Mul", ["all", "zero"], ["nothing"]),
        helper.make_node("Add", ["start", "nothing"], ["state"]),
        helper.make_node("Loop", ["count", "", "state"], ["end"], body=body),
        helper.make_node("ReduceSum", ["end"], ["end_all"], keepdims=0),
        helper.make_node("Mul", ["end_all", "zero"], ["end_nothing"]),
        helper.make_node("Add", ["x", "end_nothing"], ["y"]),
    ]
    constants = {
        "zero": np.array(0, dtype="f4"),
        "start": np.eye(side, dtype="f4"),
        "turn": np.roll(np.eye(side, dtype="f4"), 1, axis=0),
        "count": np.array(loops, dtype="i8"),
    }
    return model_of(nodes, [TensorSpec("x", "FP32", (ANY, 4))], [TensorSpec("y", "FP32", (ANY, 4))], constants)


def slow_artifact(path: Path, ms: float, *, max_rows: int = 64) -> Artifact:
    """x FP32 [rows, 4] -> y = x, which takes about `ms` milliseconds of one core for any number of rows."""
    import onnxruntime as ort

    trial = 200
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(slow_model(trial).SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.ones((1, 4), dtype="f4")
    took_s = []
    for _ in range(4):
        started_s = time.perf_counter()
        session.run(None, {"x": x})
        took_s.append(time.perf_counter() - started_s)
    loops = max(1, round(trial * ms / 1e3 / min(took_s)))
    spec_in, spec_out = TensorSpec("x", "FP32", (ANY, 4)), TensorSpec("y", "FP32", (ANY, 4))
    signature = Signature((spec_in,), (spec_out,), batched=True, max_rows=max_rows)
    costs = dict.fromkeys((1, max_rows), ms / 1e3)
    return write_artifact(path, slow_model(loops), signature, {"x": x}, costs)


def sample(artifact: Artifact) -> tuple[np.ndarray, ...]:
    """The artifact's sample, in the order of its inputs."""
    with np.load(artifact.path / SAMPLE, allow_pickle=False) as data:
        return tuple(data[spec.name] for spec in artifact.manifest.signature.inputs)
