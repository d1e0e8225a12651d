"""TensorFlow SavedModels to ONNX, by way of tf2onnx.

tf2onnx leaves what it does not know in the graph and reports success, so the result is searched for operators that ONNX
does not have. `Erfc`, which TensorFlow's GELU is made of, is one that it can be told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from onnx import defs
from tf2onnx import tf_loader

from cluster.errors import ConversionFailed
from converters.candidate import Candidate, Options, Say
from converters.onnx.failures import brief
from converters.onnx.file import INLINE_BYTES, MODEL_FILE, check, save
from converters.onnx.names import drop_traces, name_interface
from converters.tensorflow.runtime import describe_model, serving_graph, serving_key

OPSET = 18  # the newest that tf2onnx writes in full
ROWS = "rows"


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` as ONNX, to be compared with what `candidate` was compared with. Raises: ConversionFailed."""
    say("converting to ONNX")
    inputs, outputs = describe_model(candidate.path)
    model = _converted(candidate.path)
    _order(model, [spec.name for spec in inputs], [spec.name for spec in outputs])
    unknown = sorted({node.op_type for node in model.graph.node if not _exists(node)})
    if unknown:
        raise ConversionFailed(f"tf2onnx has no ONNX for {', '.join(unknown)}")
    drop_traces(model)
    _free_rows(model)
    path = save(model, work / MODEL_FILE)
    check(path)
    tools = {**candidate.tools, "tf2onnx": tf2onnx.__version__, "onnx": onnx.__version__, "opset": str(OPSET)}
    return replace(candidate, path=path, format="onnx", precision="fp32", folder=None, tools=tools)


def _converted(graph_file: Path) -> onnx.ModelProto:
    graph = serving_graph(graph_file)
    size = sum(file.stat().st_size for file in graph_file.parent.rglob("*") if file.is_file())
    if size >= INLINE_BYTES:
        raise ConversionFailed(f"{graph_file.parent.name}: {size} bytes, tf2onnx takes less than {INLINE_BYTES}")
    try:
        with _quiet(), tf.device("/cpu:0"):
            frozen, names_in, names_out, tables, renamed = tf_loader.from_saved_model(
                str(graph_file.parent),
                None,
                None,
                tag=list(graph.meta_info_def.tags),
                signatures=[serving_key(graph)],
                return_initialized_tables=True,
                return_tensors_to_rename=True,
            )
            model, _ = tf2onnx.convert._convert_common(
                frozen,
                name=graph_file.parent.name,
                continue_on_error=True,
                opset=OPSET,
                custom_op_handlers={"Erfc": (_erfc, [])},
                input_names=names_in,
                output_names=names_out,
                tensors_to_rename=renamed,
                initialized_tables=tables,
            )
    except Exception as error:
        raise ConversionFailed(f"tf2onnx: {type(error).__name__}: {brief(error)}") from None
    return model


def _erfc(graph: Any, node: Any, name: str, arguments: Any) -> Any:
    """`Erfc(x)` as `1 - Erf(x)`, as tf2onnx asks its handlers to rewrite a node."""
    kind = tf2onnx.utils.map_onnx_to_numpy_type(graph.get_dtype(node.output[0]))
    inner = graph.make_node("Erf", list(node.input), name=f"{name}_erf")
    one = graph.make_const(f"{name}_one", np.ones((), dtype=kind))
    shapes, dtypes = node.output_shapes, node.output_dtypes
    outputs = list(node.output)
    graph.remove_node(node.name)
    return graph.make_node(
        "Sub", [one.output[0], inner.output[0]], name=name, outputs=outputs, shapes=shapes, dtypes=dtypes
    )


def _exists(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and defs.has(node.op_type, OPSET, "")


def _order(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Inputs and outputs in the SavedModel's order, under its names."""
    for values, names in ((model.graph.input, inputs), (model.graph.output, outputs)):
        found = {value.name.removesuffix(":0"): value for value in values}
        if sorted(found) != sorted(names):
            raise ConversionFailed(f"tf2onnx: expected {sorted(names)}, the graph has {sorted(found)}")
        ordered = [onnx.ValueInfoProto.FromString(found[name].SerializeToString()) for name in names]
        del values[:]
        values.extend(ordered)
    name_interface(model, inputs, outputs)


def _free_rows(model: onnx.ModelProto) -> None:
    """Free dimensions 0 of the inputs under one name, as rows are called elsewhere."""
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = ROWS


@contextmanager
def _quiet() -> Iterator[None]:
    """Without tf2onnx's log, which repeats the errors it raises."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
