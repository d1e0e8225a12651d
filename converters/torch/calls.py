"""How to call a torch model: which tensors it takes, by which names, and which of their axes are free."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cluster.errors import ConversionFailed, InvalidRequest
from cluster.tensors import ANY, DTYPES, TensorSpec
from converters.candidate import Options
from converters.ranges import parse_ranges
from converters.samples import InputSpec, parse_input, user_data

ROWS = "rows"
ANY_ROWS = 1 << 30

_DTYPE_OF = {np.dtype(text): name for name, (text, size) in DTYPES.items() if size}


@dataclass(frozen=True, slots=True)
class TorchCall:
    """A callable model with its inputs in call order.

    Attributes:
        module: The module, or an exported program's.
        specs: Inputs; free axes are -1, rows included where `batched`.
        axes: Per input, its free axes by the user's name (axis 0 included where it counts rows).
        keywords: Names of `specs` that are passed by keyword, under the same name.
        batched: Whether dimension 0 of every input is free.
        max_rows: Most rows that the model accepts.
        examples: Input specs as `Options.inputs` has them, with the sizes the model was exported with, where known.
    """

    module: Any
    specs: tuple[TensorSpec, ...]
    axes: tuple[Mapping[int, str], ...]
    keywords: frozenset[str]
    batched: bool
    max_rows: int = ANY_ROWS
    examples: tuple[str, ...] = ()

    def arguments(
        self, tensors: Mapping[str, torch.Tensor]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Positional and keyword arguments."""
        args = tuple(tensors[s.name] for s in self.specs if s.name not in self.keywords)
        return args, {s.name: tensors[s.name] for s in self.specs if s.name in self.keywords}

    def run(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        args, kwargs = self.arguments(tensors)
        return self.module(*args, **kwargs)

    def parameters(self, kwargs: tuple[str, ...]) -> dict[str, str]:
        """The input that each parameter of `forward` receives."""
        by_position = [s.name for s in self.specs if s.name not in self.keywords]
        return {**dict(zip(forward_parameters(self.module), by_position, strict=False)), **{k: k for k in kwargs}}


def forward_parameters(module: torch.nn.Module) -> tuple[str, ...]:
    """Names that `forward` takes, in order."""
    if isinstance(module, torch.jit.ScriptModule):
        return tuple(argument.name for argument in module.forward.schema.arguments[1:])
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds)


def of_module(module: torch.nn.Module, options: Options) -> TorchCall:
    """How to call a module, from the user's sample and input specs.

    Inputs whose names are parameters of `forward` are passed by name, otherwise all are passed in the order given.

    Raises: InvalidRequest if neither a sample nor specs say what the module takes.
    """
    stated = _with_ranges(_stated(module, options), options)
    names = [spec.name for spec in stated]
    parameters = forward_parameters(module)
    by_name = set(names) <= set(parameters)
    if by_name:
        stated.sort(key=lambda spec: parameters.index(spec.name))
    elif len(names) > len(parameters):
        raise InvalidRequest(f"inputs: the model takes {list(parameters)}, got {names}")
    batched = options.max_rows > 1
    specs = tuple(TensorSpec(s.name, s.dtype, _free_shape(s, batched)) for s in stated)
    axes = tuple({**s.axes, 0: ROWS} if batched else {a: n for a, n in s.axes.items() if a} for s in stated)
    return TorchCall(module, specs, axes, frozenset(names) if by_name else frozenset(), batched)


def _with_ranges(stated: list[InputSpec], options: Options) -> list[InputSpec]:
    """The specs with the axes of `options.dynamic` free."""
    ranges = parse_ranges(options.dynamic)
    return [
        replace(spec, axes={**{r.axis: f"{spec.name}_{r.axis}" for r in ranges if r.name == spec.name}, **spec.axes})
        for spec in stated
    ]


def _free_shape(spec: InputSpec, batched: bool) -> tuple[int, ...]:
    return tuple(
        ANY if (axis == 0 and batched) or (axis and axis in spec.axes) else d for axis, d in enumerate(spec.shape)
    )


def _stated(module: torch.nn.Module, options: Options) -> list[InputSpec]:
    if options.inputs:
        return [parse_input(text) for text in options.inputs]
    data = user_data(options)
    if not data:
        raise InvalidRequest(
            "input: a PyTorch module does not say what it takes; give --sample data.npz or --input name:FP32:N,..."
        )
    arrays = next(iter(data.values()))
    half = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32) == torch.float16
    found = []
    for name, array in arrays.items():
        # numpy computes in float64 unless told otherwise; models rarely do.
        dtype = ("FP16" if half else "FP32") if array.dtype == np.float64 else _DTYPE_OF.get(array.dtype)
        if dtype is None or (array.ndim == 0 and options.max_rows > 1):
            raise InvalidRequest(f"sample: {name}: expected rows of numbers, got {array.dtype} {list(array.shape)}")
        found.append(InputSpec(name, dtype, array.shape, {}))
    return found


def of_program(program: Any, options: Options) -> tuple[TorchCall, tuple[str, ...]]:
    """How to call an exported program, from its own graph, with notes.

    Raises: ConversionFailed if its inputs are not plain tensors, or if it was exported in training mode.
    """
    training = [str(node.target) for node in program.graph.nodes if node.op == "call_function" and _trains(node)]
    if training:
        raise ConversionFailed(f"the .pt2 was exported in training mode ({training[0]}): call eval() before the export")
    names = list(program.graph_signature.user_inputs)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    positional, keyword = (program.call_spec.in_spec.child(i) for i in range(2))
    plain = all(child.is_leaf() for spec in (positional, keyword) for child in spec.children())
    if not plain or not all(isinstance(name, str) and isinstance(values.get(name), torch.Tensor) for name in names):
        raise ConversionFailed("the .pt2 takes nested or non-tensor inputs; export it with tensors as arguments")
    keywords = list(keyword.context or ())
    names[positional.num_children :] = keywords
    stated = {spec.name: spec for spec in map(parse_input, options.inputs)}
    unknown = set(stated) - set(names)
    if unknown:
        raise InvalidRequest(f"input: expected some of {names}, got {sorted(unknown)}")
    specs, axes, examples, most = [], [], [], ANY_ROWS
    for name, value in zip(names, (values[n] for n in program.graph_signature.user_inputs), strict=True):
        dtype = _DTYPE_OF.get(np.dtype(str(value.dtype).removeprefix("torch."))) if _known(value.dtype) else None
        if dtype is None:
            raise ConversionFailed(f"the .pt2 takes {value.dtype} for {name}, which the protocol does not have")
        specs.append(TensorSpec(name, dtype, tuple(d if isinstance(d, int) else ANY for d in value.shape)))
        axes.append({i: f"{name}_{i}" for i, d in enumerate(value.shape) if not isinstance(d, int)})
        sizes = ["N" if i == 0 and not isinstance(d, int) else _example_size(i, d) for i, d in enumerate(value.shape)]
        if sizes and name not in stated:
            examples.append(f"{name}:{dtype}:{','.join(sizes)}")
        if value.ndim and not isinstance(value.shape[0], int):
            most = min(most, _upper(program, value.shape[0]))
    free = all(spec.shape and spec.shape[0] == ANY for spec in specs)
    batched = free and options.max_rows > 1
    notes: tuple[str, ...] = ()
    if not free and options.max_rows > 1:
        notes = ("the .pt2 was exported with a fixed dimension 0: requests are not batched",)
    elif most < options.max_rows:
        notes = (f"the .pt2 was exported for at most {most} rows",)
    most = most if batched else ANY_ROWS
    keyword_names = frozenset(keywords)
    call = TorchCall(
        program.module(), tuple(specs), tuple(axes), keyword_names, batched, most, (*options.inputs, *examples)
    )
    return call, notes


def _example_size(axis: int, size: Any) -> str:
    return str(size) if isinstance(size, int) else f"axis_{axis}={size.node.hint or 1}"


def _known(dtype: torch.dtype) -> bool:
    return dtype != torch.bfloat16 and not dtype.is_complex and "float8" not in str(dtype)


def _upper(program: Any, size: torch.SymInt) -> int:
    ranges = program.range_constraints.get(size.node.expr)
    return int(ranges.upper) if ranges is not None and ranges.upper.is_Integer else ANY_ROWS


def _trains(node: Any) -> bool:
    """Whether a graph node behaves as in training: argument 5 of batch_norm, 2 of dropout."""
    name = str(node.target)
    if name.startswith("aten.batch_norm"):
        return len(node.args) > 5 and bool(node.args[5])
    return name.startswith("aten.dropout") and len(node.args) > 2 and bool(node.args[2])
