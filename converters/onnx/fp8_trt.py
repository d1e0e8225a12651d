"""FP32 ONNX to FP8 (E4M3) as TensorRT reads it: explicit quantise/dequantise nodes around matrix products.

Ranges are measured as for INT8, and then stretched over FP8's: the largest value seen becomes 448, the largest that
E4M3 has. Only convolutions and matrix products are quantised; in FP8 nothing else gets faster. ONNX Runtime takes these
nodes for INT8 ones and fails, so what can be proved anywhere is a copy that divides, casts to FP8 and back, and
multiplies.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType

from cluster.errors import ConversionFailed
from converters.candidate import Candidate, Options, Say
from converters.onnx.bf16 import beside
from converters.onnx.file import MODEL_FILE, read, save
from converters.onnx.int8 import Flavour, quantised
from converters.onnx.int8_trt import TRT

LEAST_OPSET = 19  # https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html: FP8 since version 19
LARGEST_FP8, LARGEST_INT8 = 448.0, 127.0
PRODUCTS = ("Conv", "Gemm", "MatMul")

ROUNDED = "What was compared is a copy in FP32 that rounds to FP8 where this does"
UNEXECUTED = f"not executed here: ONNX Runtime computes no FP8 on a CPU. {ROUNDED}"

FLAVOUR = Flavour(QuantType.QInt8, TRT.options, operators=PRODUCTS, label="FP8")


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` in FP8, and its rounded copy as the stand-in.

    Raises: as `converters.onnx.int8.convert`, and ConversionFailed for an older opset.
    """
    opset = opset_of(candidate.path)
    if opset < LEAST_OPSET:
        raise ConversionFailed(f"fp8: expected a model of opset {LEAST_OPSET} or newer, got {opset}")
    made = quantised(candidate, work, options, say, FLAVOUR)
    model = read(made.path)
    stretch(model)
    save(model, made.path)
    round_in_fp32(model)
    stand_in = save(model, beside(work) / MODEL_FILE)
    return replace(made, precision="fp8", unexecuted=UNEXECUTED, stand_in=stand_in)


def opset_of(path: Path) -> int:
    """The version of ONNX's own operators that a file uses."""
    model = onnx.load(path, load_external_data=False)
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def stretch(model: onnx.ModelProto) -> None:
    """Turn a model's symmetric INT8 nodes into FP8 ones.

    Raises: ConversionFailed if a scale is computed, or a zero point is not 0.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {node.input[1] for node in nodes}
    zeros = {node.input[2] for node in nodes if len(node.input) > 2}
    unknown = sorted((scales | zeros) - set(tensors))
    if unknown or any(len(node.input) < 3 for node in nodes):
        raise ConversionFailed(f"fp8: scales and zero points must be stated, {unknown or 'one'} is not")
    for name in scales:
        scale = numpy_helper.to_array(tensors[name])
        stretched = (scale * np.float32(LARGEST_INT8 / LARGEST_FP8)).astype(scale.dtype)
        tensors[name].CopyFrom(numpy_helper.from_array(stretched, name))
    for name in zeros:
        if numpy_helper.to_array(tensors[name]).any():
            raise ConversionFailed(f"fp8: expected the zero point 0, got another in {name}")
        shape = tuple(tensors[name].dims)
        blank = b"\0" * int(np.prod(shape, dtype=np.int64))
        tensors[name].CopyFrom(helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, shape, blank, raw=True))
    del model.graph.value_info[:]  # it states INT8


def round_in_fp32(model: onnx.ModelProto) -> None:
    """Turn FP8 quantise/dequantise nodes into arithmetic that ONNX Runtime has on a CPU, with the same results."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            nodes.append(node)
            continue
        value, scale, out = node.input[0], node.input[1], node.output[0]
        if tensors[scale].dims and node.op_type == "QuantizeLinear":  # a scale per channel, to be spread along its axis
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            sizes = [1] * len(tensors[value].dims)
            sizes[axis] = -1
            spread = numpy_helper.to_array(tensors[scale]).reshape(sizes)
            tensors[scale].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(spread), scale))
        if node.op_type == "QuantizeLinear":
            nodes.append(helper.make_node("Div", [value, scale], [f"{out}_scaled"]))
            nodes.append(helper.make_node("Cast", [f"{out}_scaled"], [out], to=TensorProto.FLOAT8E4M3FN))
        else:
            nodes.append(helper.make_node("Cast", [value], [f"{out}_scaled"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [f"{out}_scaled", scale], [out]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
