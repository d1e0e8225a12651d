"""ONNX to a TensorFlow SavedModel: the graph rebuilt as a `tf.Module`, with the names and free dimensions of the ONNX.

`converters.tensorflow.graph` rebuilds, the `tf_ops_*` modules hold each operator's counterpart.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import tensorflow as tf
from onnx import helper, inliner
from tensorflow.core.protobuf import saved_model_pb2

from cluster.errors import ConversionFailed
from converters.candidate import Candidate, Options, Say
from converters.interface import write_order
from converters.onnx.failures import brief
from converters.onnx.file import read
from converters.tensorflow import (  # noqa: F401  # they register their operators
    ops_dense,
    ops_elements,
    ops_pooling,
    ops_resize,
    ops_shapes,
    ops_spatial,
)
from converters.tensorflow.graph import Rebuilding, unsupported
from converters.tensorflow.runtime import GRAPH_FILE, SERVING

FOLDER = "saved_model"


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` as a SavedModel, to be compared with what `candidate` was compared with.

    Raises: ConversionFailed, naming every operator that has no counterpart, and a node that uses it.
    """
    model = inliner.inline_local_functions(read(candidate.path))
    missing = unsupported(model)
    if missing:
        listed = "; ".join(f"{op} (node {node})" for op, node in missing.items())
        raise ConversionFailed(f"TensorFlow has no counterpart here for {listed}")
    say("rebuilding the graph with TensorFlow's operations")
    folder = work / FOLDER
    path = save(model, folder)
    tools = {**candidate.tools, "tensorflow": tf.__version__}
    return replace(candidate, path=path, format="tensorflow", tools=tools)


def save(model: onnx.ModelProto, folder: Path) -> Path:
    """The SavedModel's graph file, written with its variables to `folder`. Raises: ConversionFailed."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    names, outputs = [value.name for value in inputs], [value.name for value in model.graph.output]
    arguments, results = identifiers(names, "input"), identifiers(outputs, "output")
    rebuilding = Rebuilding(model)

    def serve(**tensors: Any) -> dict[str, Any]:
        found = rebuilding.run(dict(zip(names, (tensors[name] for name in arguments), strict=True)))
        return {result: found[output] for result, output in zip(results, outputs, strict=True)}

    # TensorFlow takes the names of a signature's inputs from the function's parameters.
    serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in arguments]
    )
    module = tf.Module()
    try:
        traced = tf.function(serve, autograph=False).get_concrete_function(
            **{name: _spec(value, name) for name, value in zip(arguments, inputs, strict=True)}
        )
        module.weights = rebuilding.variables
        tf.saved_model.save(module, str(folder), signatures={SERVING: traced})
    except ConversionFailed:
        raise
    except Exception as error:
        raise ConversionFailed(
            f"TensorFlow cannot rebuild this model: {type(error).__name__}: {brief(error)}"
        ) from None
    path = folder / GRAPH_FILE
    _rename(path, dict(zip(arguments, names, strict=True)), dict(zip(results, outputs, strict=True)))
    write_order(path, names, outputs)
    return path


def identifiers(names: Sequence[str], fallback: str) -> list[str]:
    """A Python identifier for each name: itself where it is one, else `fallback` with its place."""
    return [
        name if name.isidentifier() and not keyword.iskeyword(name) and name != "self" else f"{fallback}_at_{i}"
        for i, name in enumerate(names)
    ]


def _spec(value: onnx.ValueInfoProto, name: str) -> tf.TensorSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ConversionFailed(f"input {value.name}: expected a tensor")
    string = tensor.elem_type == onnx.TensorProto.STRING
    dtype = tf.string if string else tf.as_dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    return tf.TensorSpec(shape if tensor.HasField("shape") else None, dtype, name=name)


def _rename(path: Path, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    """Give a signature the names that are no Python identifiers."""
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    signature = saved.meta_graphs[0].signature_def[SERVING]
    for entries, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
        moved = {names[key]: entries[key].SerializeToString() for key in list(entries)}
        entries.clear()
        for name, content in moved.items():
            entries[name].ParseFromString(content)
    path.write_bytes(saved.SerializeToString())
