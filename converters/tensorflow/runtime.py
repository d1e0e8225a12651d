"""TensorFlow SavedModels, run by their serving signature.

A session is used as TensorFlow's own server does: it takes names from the signature, whatever characters they have, and
its threads are its own, not the process's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import, which logs by it

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, rewriter_config_pb2, saved_model_pb2

from cluster.artifact import Artifact
from cluster.errors import EngineFailed, InvalidRequest, ServingError
from cluster.tensors import ANY, DTYPES, Signature, TensorSpec
from converters.interface import TRUST, check_inputs, check_manifest, check_rows, in_order, may_lose_rows
from converters.onnx.failures import brief
from converters.runtime import Arrays, Specs
from converters.tensorflow.effects import effects

GRAPH_FILE = "saved_model.pb"
SERVING, TAG = "serving_default", "serve"

_DTYPE_OF = {np.dtype(text): name for name, (text, size) in DTYPES.items() if size}


class TensorFlowRuntime:
    """One session over a SavedModel's graph, behind the signature it serves."""

    def __init__(self, call: Any, signature: Signature) -> None:
        self._call = call
        self._signature = signature
        self._row_guard = may_lose_rows(signature)

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Arrays) -> Arrays:
        """See `converters.runtime.Runtime.run`."""
        check_inputs(self._signature, inputs)
        try:
            outputs = tuple(np.asarray(array, order="C") for array in self._call(*inputs))
        except Exception as error:
            raise failure_of(error) from None
        if self._row_guard:
            check_rows(self._signature.outputs, inputs[0].shape[0], outputs)
        return outputs


def open_artifact(artifact: Artifact, threads: int, accelerator: str) -> TensorFlowRuntime:
    """The runtime of a `tensorflow` artifact. Raises as `converters.runtime.open_runtime`."""
    model = artifact.model_path
    graph_def = serving_graph(model)
    found = effects(graph_def)
    if found and os.environ.get(TRUST) != "1":
        raise EngineFailed(f"{model.name}: its graph holds {', '.join(found)}, which may do more than compute")
    signature = check_manifest(artifact, *_specs(graph_def))
    compat = tf.compat.v1
    gpus = tf.config.list_physical_devices("GPU") if accelerator != "cpu" else []
    if accelerator == "gpu" and not gpus:
        raise EngineFailed("accelerator: expected gpu, but TensorFlow sees none")
    config = compat.ConfigProto(
        intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1, device_count={} if gpus else {"GPU": 0}
    )
    config.gpu_options.allow_growth = True
    if _may_be_taken_for_layer_norm(graph_def):
        config.graph_options.rewrite_options.remapping = rewriter_config_pb2.RewriterConfig.OFF
    stated = graph_def.signature_def[serving_key(graph_def)]
    graph = tf.Graph()
    try:
        session = compat.Session(graph=graph, config=config)
        with graph.as_default():
            compat.saved_model.load(session, list(graph_def.meta_info_def.tags), str(model.parent))
        call = session.make_callable(
            [stated.outputs[spec.name].name for spec in signature.outputs],
            [stated.inputs[spec.name].name for spec in signature.inputs],
        )
    except Exception as error:
        raise EngineFailed(f"{model.name}: TensorFlow cannot load it: {brief(error)}") from None
    return TensorFlowRuntime(call, signature)


def _may_be_taken_for_layer_norm(graph: meta_graph_pb2.MetaGraphDef) -> bool:
    """Whether TensorFlow could put its fused layer normalisation into the graph, which has an epsilon of 0.001 whatever
    the graph says: with a smaller one, small values come out wrong. (_MklLayerNorm, TensorFlow 2.21.)"""
    bodies = (graph.graph_def.node, *(function.node_def for function in graph.graph_def.library.function))
    return {"SquaredDifference", "Rsqrt"} <= {node.op for nodes in bodies for node in nodes}


def can_use_gpu() -> bool:
    """Whether this TensorFlow was built for GPUs and sees one."""
    return bool(tf.config.list_physical_devices("GPU"))


def describe_model(model: Path) -> tuple[Specs, Specs]:
    """Input and output specs of the serving signature. Raises: EngineFailed, InvalidRequest."""
    return in_order(model, *_specs(serving_graph(model)))


def serving_graph(model: Path) -> meta_graph_pb2.MetaGraphDef:
    """What a SavedModel holds for serving. Raises: EngineFailed if the file is damaged or holds nothing to serve."""
    try:
        saved = saved_model_pb2.SavedModel.FromString(model.read_bytes())
    except Exception as error:  # protobuf's errors have no public base
        raise EngineFailed(f"{model.name}: not a SavedModel ({brief(error)})") from None
    graphs = [graph for graph in saved.meta_graphs if TAG in graph.meta_info_def.tags]
    if not graphs:
        raise EngineFailed(f"{model.name}: not a SavedModel with the tag {TAG!r}")
    # Where several are for serving, all that read the file must mean the same one: most ask for this tag alone.
    graph = next((graph for graph in graphs if set(graph.meta_info_def.tags) == {TAG}), graphs[0])
    serving_key(graph)
    return graph


def serving_key(graph: meta_graph_pb2.MetaGraphDef) -> str:
    """The name of the signature that is served. Raises: EngineFailed if it is not clear which one."""
    keys = [key for key, entry in graph.signature_def.items() if entry.inputs and entry.outputs]
    if SERVING in keys:
        return SERVING
    if len(keys) != 1:
        raise EngineFailed(f"expected the signature {SERVING!r}, the SavedModel has {sorted(keys) or 'none'}")
    return str(keys[0])


def _specs(graph: meta_graph_pb2.MetaGraphDef) -> tuple[Specs, Specs]:
    entry = graph.signature_def[serving_key(graph)]
    for name, info in entry.inputs.items():
        if info.tensor_shape.unknown_rank:
            raise InvalidRequest(
                f"{name}: its number of dimensions is not stated; save the model with an input_signature that does"
            )
    return _side(entry.inputs.items()), _side(entry.outputs.items())


def _side(infos: Any) -> Specs:
    return tuple(TensorSpec(name, _dtype_of(name, info), _shape_of(info)) for name, info in infos)


def _dtype_of(name: str, info: Any) -> str:
    dtype = tf.as_dtype(info.dtype)
    if dtype == tf.string:
        return "BYTES"
    found = _DTYPE_OF.get(np.dtype(dtype.as_numpy_dtype))
    if found is None or info.WhichOneof("encoding") != "name":
        raise InvalidRequest(f"{name}: expected a tensor of {', '.join(DTYPES)}, got {dtype.name}")
    return found


def _shape_of(info: Any) -> tuple[int, ...]:
    if info.tensor_shape.unknown_rank:
        return ()  # of an output: the proof finds what it is
    return tuple(dim.size if dim.size >= 0 else ANY for dim in info.tensor_shape.dim)


# What a request's values or sizes can cause; everything else is the server's own failure.
_REFUSED: Sequence[type[BaseException]] = (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError, ValueError)


def failure_of(error: Exception) -> ServingError:
    """What to raise for an error of a session, with a message of one line that names no file."""
    reason = brief(Exception(str(error).split("\n\t [[")[0].split("\n")[0])) or type(error).__name__
    if isinstance(error, tuple(_REFUSED)):
        return InvalidRequest(f"the model refuses these inputs: {reason}")
    return EngineFailed(f"TensorFlow: {reason}")
