"""What a model is built of, seen from its file without running it: how many convolutions and matrix products.

It only says which forms are worth a try, so a rough count is enough, and a file that cannot be read is nobody's mistake
here: the conversion itself will say what is wrong with it.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.formats import Format
from converters.onnx.graphs import graphs

MAX_TEXT_BYTES = 1 << 30

_ONNX_CONVOLUTIONS = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"}
_ONNX_PRODUCTS = {"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"}
_TF_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative", "Conv3D", "Conv2DBackpropInput")
_TF_PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "Einsum")
_KERAS_PRODUCTS = ("Dense", "EinsumDense", "MultiHeadAttention")
_OP_FIELD = 0x12  # NodeDef.op of tensorflow/core/framework/node_def.proto: field 2, a string


@dataclass(frozen=True, slots=True)
class Layers:
    """How many convolutions, and matrix products with weights, a model has."""

    convolutions: int
    products: int


def layers_of(path: Path, source: Format) -> Layers | None:
    """The layers of a source, or None where its file does not tell without being run."""
    look = _LOOKS.get(source)
    try:
        return look(path) if look is not None else None
    except Exception:  # whatever damaged files make parsers raise
        return None


def _in_onnx(path: Path) -> Layers:
    import onnx

    nodes: Counter[str] = Counter()
    for graph in graphs(onnx.load(path, load_external_data=False).graph):
        fixed = {tensor.name for tensor in graph.initializer}
        fixed |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
        for node in graph.node:
            if node.op_type in _ONNX_CONVOLUTIONS or fixed & set(node.input):
                nodes[node.op_type] += 1
    return Layers(_sum(nodes, _ONNX_CONVOLUTIONS), _sum(nodes, _ONNX_PRODUCTS))


def _sum(counts: Mapping[str, int], names: Iterable[str]) -> int:
    return sum(counts.get(name, 0) for name in names)


def _in_weights(path: Path) -> Layers | None:
    """By the sizes of the weights: a matrix for a product (or a table), more dimensions for a convolution."""
    shapes = _safetensors_shapes(path) if path.suffix.lower() == ".safetensors" else _torch_shapes(path)
    kernels = [shape for name, shape in shapes.items() if name.endswith("weight")]
    if not kernels:
        return None
    return Layers(sum(len(shape) > 2 for shape in kernels), sum(len(shape) == 2 for shape in kernels))


def _safetensors_shapes(path: Path) -> dict[str, Sequence[int]]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(size, MAX_TEXT_BYTES)))
    return {name: entry["shape"] for name, entry in header.items() if "shape" in entry}


def _torch_shapes(path: Path) -> dict[str, Sequence[int]]:
    import torch

    found = torch.load(path, map_location="meta", weights_only=True)
    state = found.get("state_dict", found)
    return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, torch.Tensor)}


def _in_program(path: Path) -> Layers:
    text = _member(path, "models/model.json")
    products = ("linear.", "addmm.", "mm.", "bmm.", "baddbmm.", "matmul.")
    return Layers(
        text.count(b"torch.ops.aten.conv"), sum(text.count(f"torch.ops.aten.{name}".encode()) for name in products)
    )


def _in_keras(path: Path) -> Layers:
    classes: Counter[str] = Counter(_classes(json.loads(_member(path, "config.json"))))
    convolutions = sum(count for name, count in classes.items() if "Conv" in name)
    return Layers(convolutions, _sum(classes, _KERAS_PRODUCTS))


def _classes(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("class_name"), str):
            yield value["class_name"]
        for inner in value.values():
            yield from _classes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _classes(inner)


def _member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        member = next(m for m in archive.infolist() if m.filename == name or m.filename.endswith(f"/{name}"))
        if member.file_size > MAX_TEXT_BYTES:
            raise ValueError(f"{name} has {member.file_size} bytes")
        return archive.read(member)


def _in_saved_model(path: Path) -> Layers:
    graph = (path / "saved_model.pb").read_bytes()

    def count(names: Sequence[str]) -> int:
        return sum(graph.count(bytes((_OP_FIELD, len(name))) + name.encode()) for name in names)

    return Layers(count(_TF_CONVOLUTIONS), count(_TF_PRODUCTS))


def _in_trees(path: Path) -> Layers:
    return Layers(0, 0)


_LOOKS: dict[Format, Callable[[Path], Layers | None]] = {
    Format.ONNX_FILE: _in_onnx,
    Format.TORCH: _in_weights,
    Format.PT2: _in_program,
    Format.KERAS: _in_keras,
    Format.SAVED_MODEL: _in_saved_model,
    **dict.fromkeys((Format.XGBOOST, Format.LIGHTGBM), _in_trees),
}
