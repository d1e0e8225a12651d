"""ONNX files from elsewhere: checked, confined to their folder, and brought into a work folder.

A file may keep its weights in others ("external data"), named by paths inside it. Those must be plain files below the
model's own folder: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model, set_external_data

from cluster.artifact import sha256_of
from cluster.errors import ConversionFailed
from cluster.tensors import ANY
from converters.candidate import Candidate, Options, Say
from converters.isolated import describe
from converters.onnx.failures import brief
from converters.onnx.graphs import graphs
from converters.ranges import check_ranges, parse_ranges
from converters.source_cases import fixed_note, with_cases

MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"
INLINE_BYTES = 1_500_000_000  # protobuf messages end at 2 GiB
LEAST_EXTERNAL_BYTES = 1024  # smaller tensors stay in the model
MAX_MODEL_BYTES = 64 << 30

_QUANTISED = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger"}


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """The same model, checked and copied into `work`; nothing can be compared with, so it is compared with itself.

    Raises: ConversionFailed if the file is damaged, reaches out of its folder or cannot be loaded.
    """
    say("checking the ONNX file")
    model = _opened(candidate.path)
    external = _hashes(model, candidate.path.parent)
    _load_weights(model, candidate.path)
    trained = evaluate(model)
    path = save(model, work / MODEL_FILE)
    check(path)
    inputs, _ = describe(path)
    batched = options.max_rows > 1 and all(spec.shape and spec.shape[0] == ANY for spec in inputs)
    notes = () if batched or options.max_rows == 1 else (fixed_note(inputs),)
    found = Candidate(
        path=path,
        precision=precision_of(model),
        source={**candidate.source, **external},
        tools={"onnx": onnx.__version__},
        notes=(*candidate.notes, *trained, *notes),
    )
    check_ranges(parse_ranges(options.dynamic), inputs)
    return with_cases(found, inputs, options, batched)


def read(path: Path) -> onnx.ModelProto:
    """The model with its external data loaded. Raises: ConversionFailed."""
    model = _opened(path)
    _load_weights(model, path)
    return model


def _load_weights(model: onnx.ModelProto, path: Path) -> None:
    try:
        load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise ConversionFailed(f"{path.name}: its external data cannot be read: {brief(error)}") from None


def _opened(path: Path) -> onnx.ModelProto:
    """The model without its external data, which is confined to its folder. Raises: ConversionFailed."""
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise ConversionFailed(f"{path.name}: {path.stat().st_size} bytes, at most {MAX_MODEL_BYTES} are read")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no public base
        raise ConversionFailed(f"{path.name}: not an ONNX model ({brief(error)})") from None
    if not model.graph.output or not model.graph.node:
        raise ConversionFailed(f"{path.name}: not an ONNX model, or an empty one")
    confine(model, path.parent)
    return model


def evaluate(model: onnx.ModelProto) -> tuple[str, ...]:
    """Put what was exported in training mode into evaluation mode; a note if there was any.

    Raises: ConversionFailed if something in the graph uses what only training computes.
    """
    every = list(graphs(model.graph))
    constants = {t.name: t for graph in every for t in graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t for graph in every for node in graph.node if node.op_type == "Constant"
    }
    used = {name for graph in every for node in graph.node for name in node.input}
    used |= {value.name for graph in every for value in graph.output}
    changed: list[str] = []
    for node in (node for graph in every for node in graph.node):
        flags = [a for a in node.attribute if a.name == "training_mode" and a.i]
        if node.op_type == "BatchNormalization" and flags:
            if used & set(node.output[1:]):
                raise ConversionFailed(f"node {node.name!r}: its running statistics are used, which only training has")
            flags[0].i = 0
            del node.output[1:]
        elif node.op_type == "Dropout" and len(node.input) > 2 and _is_true(constants.get(node.input[2])):
            del node.input[2:]  # without it, nothing is dropped
        else:
            continue
        changed.append(node.op_type)
    if not changed:
        return ()
    return (f"the source was in training mode ({', '.join(sorted(set(changed)))}) and was put into evaluation mode",)


def _hashes(model: onnx.ModelProto, folder: Path) -> dict[str, dict[str, str]]:
    """For a manifest: `external`, the SHA-256 in hex of each other file with weights, by location; {} without any."""
    locations = _locations(model)
    return {"external": {name: sha256_of(folder / name) for name in locations}} if locations else {}


def external_files(path: Path) -> tuple[str, ...]:
    """Where a model keeps weights, relative to its folder and sorted. Raises: ConversionFailed as `read`."""
    return _locations(_opened(path))


def _locations(model: onnx.ModelProto) -> tuple[str, ...]:
    return tuple(sorted({_location(tensor) for tensor in tensors(model) if _external(tensor)}))


def _is_true(tensor: TensorProto | None) -> bool:
    return tensor is not None and bool(onnx.numpy_helper.to_array(tensor).all())


def confine(model: onnx.ModelProto, folder: Path) -> None:
    """Check that every external tensor lies in a plain file below `folder`. Raises: ConversionFailed."""
    root = folder.resolve()
    sizes: dict[str, int] = {}
    total = 0
    for tensor in tensors(model):
        if not _external(tensor):
            continue
        location = _location(tensor)
        if location not in sizes:
            sizes[location] = _size_below(root, location)
        total += _read_bytes(tensor, sizes[location])
    if total > MAX_MODEL_BYTES:
        raise ConversionFailed(f"external data: {total} bytes, at most {MAX_MODEL_BYTES} are read")


def _size_below(root: Path, location: str) -> int:
    """Bytes of the plain file at `location` below `root`. Raises: ConversionFailed if it is none."""
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or ".." in pure.parts or "\\" in location:
        raise ConversionFailed(f"external data: {location!r} leaves the model's folder")
    file = (root / pure).resolve()
    if not file.is_relative_to(root):
        raise ConversionFailed(f"external data: {location!r} is a link out of the model's folder")
    if not file.is_file():
        raise ConversionFailed(f"external data: {location!r} is not there")
    return file.stat().st_size


def _read_bytes(tensor: TensorProto, size: int) -> int:
    """How much of a file of `size` bytes a tensor reads: many may read the same. Raises: ConversionFailed."""
    stated = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = stated.get("offset", "0"), stated.get("length", str(size))
    if not offset.isdecimal() or not length.isdecimal() or int(offset) > size:
        raise ConversionFailed(f"external data: {tensor.name!r} is said to be at {offset} of {size} bytes")
    return min(int(length), size - int(offset))


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield sparse.values
            yield sparse.indices
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _location(tensor: TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model whose weights are in memory, beside it in one file where they are too large for protobuf.

    The model keeps its weights, so that it can be changed and saved again.
    """
    size = model.ByteSize() if _countable(model) else INLINE_BYTES
    if size < INLINE_BYTES:
        onnx.save(model, path)
        return path
    # onnx's own option for this fails if the current folder, of all places, has a file of that name.
    path.with_name(DATA_FILE).unlink(missing_ok=True)  # it would be appended to
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            if len(tensor.raw_data) >= LEAST_EXTERNAL_BYTES:
                set_external_data(tensor, DATA_FILE)
    onnx.save(model, path)  # which takes the weights out of the model
    load_external_data_for_model(model, str(path.parent))
    return path


def is_large(path: Path) -> bool:
    """Whether a model on disk, with its external data, is too large for one protobuf message."""
    return sum(file.stat().st_size for file in path.parent.glob(path.name + "*")) >= INLINE_BYTES


def _countable(model: onnx.ModelProto) -> bool:
    # ByteSize itself fails beyond 2 GiB, so the weights are added up first.
    return sum(len(tensor.raw_data) for tensor in tensors(model)) < INLINE_BYTES


def check(path: Path) -> None:
    """Raises: ConversionFailed if the model breaks ONNX's rules."""
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise ConversionFailed(f"{path.name}: onnx.checker refuses it: {brief(error)}") from None


def precision_of(model: onnx.ModelProto) -> str:
    """`int8` where anything is quantised, else the type that most weights have."""
    if any(node.op_type in _QUANTISED for node in model.graph.node):
        return "int8"
    names = {TensorProto.FLOAT16: "fp16", TensorProto.FLOAT: "fp32", TensorProto.DOUBLE: "fp64"}
    sizes: dict[str, int] = {}
    for tensor in tensors(model):
        if tensor.data_type in names:
            name = names[tensor.data_type]
            sizes[name] = sizes.get(name, 0) + max(1, len(tensor.raw_data))
    return max(sizes, key=lambda name: sizes[name], default="fp32")


def source_of(path: Path, kind: str) -> dict[str, str]:
    """What a manifest says of a source file."""
    return {"kind": kind, "file": path.name, "sha256": sha256_of(path)}
