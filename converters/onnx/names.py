"""Names inside an ONNX graph: inputs, outputs and free dimensions called what the user calls them.

ONNX values have one name space, subgraphs included, and no value may shadow another, so renaming is one simultaneous
substitution over all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import helper

from converters.onnx.graphs import graphs


def name_interface(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Call the graph's inputs and outputs by these names, moving values inside that are in the way."""
    _distinct_outputs(model.graph)
    current = [value.name for value in (*model.graph.input, *model.graph.output)]
    wanted = [*inputs, *outputs]
    used = {name for graph in graphs(model.graph) for name in _names(graph)}
    mapping = dict(zip(current, wanted, strict=True))
    for name in used - set(current):
        if name in wanted:
            mapping[name] = _fresh(f"{name}__inner", used | set(wanted))
    for graph in graphs(model.graph):
        _rename(graph, mapping)


def name_dimensions(model: onnx.ModelProto, axes: Sequence[Mapping[int, str]]) -> None:
    """Call free dimensions of input i by `axes[i]`, wherever their symbols appear."""
    mapping: dict[str, str] = {}
    for value, names in zip(model.graph.input, axes, strict=True):
        dims = value.type.tensor_type.shape.dim
        for axis, name in names.items():
            if axis < len(dims) and dims[axis].dim_param:
                mapping[dims[axis].dim_param] = name
    if not mapping:
        return
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, mapping)) + r")\b")
    for graph in graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = symbol.sub(lambda found: mapping[found[0]], dim.dim_param)


def drop_traces(model: onnx.ModelProto) -> None:
    """Take out source paths and stack traces that exporters leave on nodes and values."""
    del model.metadata_props[:]
    for graph in graphs(model.graph):
        del graph.metadata_props[:]
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node):
            del value.metadata_props[:]
            value.doc_string = ""
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""


def _distinct_outputs(graph: onnx.GraphProto) -> None:
    """Give every output a value of its own: sources may return one tensor twice, an input, or a constant."""
    used = set(_names(graph))
    taken = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for output in graph.output:
        if output.name in taken:
            copy = _fresh(f"{output.name}__out", used)
            used.add(copy)
            graph.node.append(helper.make_node("Identity", [output.name], [copy]))
            output.name = copy
        taken.add(output.name)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from node.input
        yield from node.output


def _rename(graph: onnx.GraphProto, mapping: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = mapping.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [mapping.get(name, name) for name in node.input]
        node.output[:] = [mapping.get(name, name) for name in node.output]


def _fresh(name: str, used: set[str]) -> str:
    while name in used:
        name += "_"
    return name
