"""FP32 ONNX to BF16, as TensorRT reads it: FP32's range with 8 significant bits. Inputs and outputs keep their types.

ONNX allows BF16 convolutions from opset 22 on; TensorRT's parser takes them in any, so the model keeps its own. ONNX
Runtime's CPU provider computes no BF16, so what can be proved anywhere is a copy that computes in FP32 and rounds every
weight and every result to BF16. The copy's sums are exact to FP32, as a tensor core's are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper, shape_inference

from cluster.errors import ConversionFailed
from converters.candidate import Candidate, Options, Say
from converters.onnx.failures import brief
from converters.onnx.file import MODEL_FILE, read, save
from converters.onnx.graphs import graphs

ROUNDED = "What was compared is a copy in FP32 that rounds every value to BF16"
_INFINITE = 0x7F80  # https://en.wikipedia.org/wiki/Bfloat16_floating-point_format: eight ones and no mantissa

UNEXECUTED = f"not executed here: ONNX Runtime computes no BF16 on a CPU. {ROUNDED}"


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` with BF16 weights and arithmetic, and its rounded copy as the stand-in.

    Raises: ConversionFailed, also if there is nothing in FP32.
    """
    if candidate.precision != "fp32":
        raise ConversionFailed(f"bf16: expected an fp32 model, got {candidate.precision}")
    say("converting to BF16")
    model, rounded = halved(read(candidate.path))
    path = save(model, work / MODEL_FILE)
    tools = {**candidate.tools, "onnxruntime": ort.__version__}
    return replace(
        candidate,
        path=path,
        precision="bf16",
        tools=tools,
        unexecuted=UNEXECUTED,
        stand_in=save(rounded, beside(work) / MODEL_FILE),
    )


def beside(work: Path) -> Path:
    """A folder for the stand-in of what is made in `work`, which is no part of the artifact."""
    folder = work.parent / f"{work.name}-rounded"
    folder.mkdir(exist_ok=True)
    return folder


def halved(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The model in BF16, and a copy in FP32 that rounds every value to BF16.

    Where casts belong and which operators stay in FP32 is what ONNX Runtime's converter to FP16 decides; its FP16 then
    becomes BF16, with weights taken from the original.

    Raises: ConversionFailed.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    originals = dict(_constants(model.graph))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of weights too small for FP16, which BF16 can hold
            half = convert_float_to_float16(model, keep_io_types=True)
        for part in graphs(half.graph):
            del part.value_info[:]  # some still state FP32
            _sort(part)
        typed = shape_inference.infer_shapes(half)
    except Exception as error:
        raise ConversionFailed(f"bf16: this model cannot be converted: {brief(error)}") from None
    halves = {value.name for value in _values(typed.graph) if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    rounded = onnx.ModelProto()
    rounded.CopyFrom(half)
    _retype(half.graph, originals, TensorProto.BFLOAT16)
    _retype(rounded.graph, originals, TensorProto.FLOAT)
    _round(rounded.graph, halves)
    return half, rounded


def _sort(graph: onnx.GraphProto) -> None:
    """Put every node behind those whose values it uses: casts are appended, and types are inferred in order."""
    made_by = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    sorter = TopologicalSorter({i: _needs(node, made_by) for i, node in enumerate(graph.node)})
    nodes = [graph.node[i] for i in sorter.static_order()]
    del graph.node[:]
    graph.node.extend(nodes)


def _needs(node: onnx.NodeProto, made_by: Mapping[str, int]) -> list[int]:
    inner = (graph for a in node.attribute for graph in (*a.graphs, *([a.g] if a.HasField("g") else [])))
    captured = (name for graph in inner for part in graphs(graph) for user in part.node for name in user.input)
    results = (value.name for a in node.attribute if a.HasField("g") for value in a.g.output)
    return [made_by[name] for name in (*node.input, *captured, *results) if name in made_by]


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    for part in graphs(graph):
        yield from (*part.value_info, *part.input, *part.output)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, np.ndarray]]:
    """FP32 tensors that the graph holds, by the name they are used under."""
    for part in graphs(graph):
        for tensor in part.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                yield tensor.name, numpy_helper.to_array(tensor)
        for node in part.node:
            for attribute in node.attribute:
                if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                    yield node.output[0], numpy_helper.to_array(attribute.t)


def _retype(graph: onnx.GraphProto, originals: dict[str, np.ndarray], kind: int) -> None:
    """Make every FP16 of the graph `kind`, with values rounded to BF16."""

    def retyped(name: str, tensor: onnx.TensorProto) -> onnx.TensorProto:
        values = originals.get(name, numpy_helper.to_array(tensor)).astype(np.float32)
        return _tensor(tensor.name, _bf16(values.reshape(tuple(tensor.dims))), kind)

    for part in graphs(graph):
        for tensor in part.initializer:
            if tensor.data_type == TensorProto.FLOAT16:
                tensor.CopyFrom(retyped(tensor.name, tensor))
        for value in (*part.input, *part.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = kind
        for node in part.node:
            for attribute in node.attribute:
                if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                    attribute.t.CopyFrom(retyped(node.output[0], attribute.t))
                if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                    attribute.i = kind


def _round(graph: onnx.GraphProto, halves: set[str]) -> None:
    """Let every computed value in `halves` go through BF16 and back."""
    for part in graphs(graph):
        nodes: list[onnx.NodeProto] = []
        for node in part.node:
            nodes.append(node)
            for i, name in enumerate(node.output):
                if name in halves:
                    node.output[i] = f"{name}_exact"
                    nodes.append(helper.make_node("Cast", [node.output[i]], [f"{name}_bf16"], to=TensorProto.BFLOAT16))
                    nodes.append(helper.make_node("Cast", [f"{name}_bf16"], [name], to=TensorProto.FLOAT))
        del part.node[:]
        part.node.extend(nodes)


def _bf16(values: np.ndarray) -> np.ndarray:
    """FP32 values to the 16 upper bits of the nearest finite BF16, ties to even; infinities and NaN stay.

    What would round to infinity, such as the most negative FP32 that masks attention, becomes the largest instead.
    """
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nearest = np.where(np.isfinite(values) & (nearest & 0x7FFF == _INFINITE), nearest - 1, nearest)
    return np.where(np.isnan(values), 0x7FC0, nearest).astype("<u2")


def _tensor(name: str, upper: np.ndarray, kind: int) -> onnx.TensorProto:
    raw = upper if kind == TensorProto.BFLOAT16 else (upper.astype("<u4") << 16).view("<f4")
    return helper.make_tensor(name, kind, upper.shape, raw.tobytes(), raw=True)
