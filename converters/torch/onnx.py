"""PyTorch to ONNX: torch.export, opset 20, free rows.

The exporter specialises on sizes 0 and 1, so the example has three rows, and dimensions asked to be free are declared
so that a model which bakes one in is refused instead of served for one size only. Output names are set afterwards: the
exporter does not see when a wanted name is taken by a value inside the graph, and ONNX Runtime then refuses the file.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from cluster.errors import ConversionFailed
from converters.candidate import Candidate, Case, Options, Say
from converters.formats import Format
from converters.onnx.failures import brief
from converters.onnx.file import INLINE_BYTES, MODEL_FILE, check
from converters.onnx.names import drop_traces, name_dimensions, name_interface
from converters.samples import cases_for, take
from converters.torch.calls import ROWS, TorchCall, of_module, of_program
from converters.torch.script import export_script, load_script
from converters.torch.source import load_module

# TensorRT, onnx2tf and ONNX Runtime all read 20; 23 turns attention into an operator with gaps in each of them.
OPSET = 20
EXAMPLE_ROWS = 3


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """The model as FP32 ONNX with the torch model's own answers as reference.

    Raises: InvalidRequest if data, specs or factory are wrong; ConversionFailed if torch cannot export the model.
    """
    with quiet():
        return _convert(candidate, work, options, say)


@dataclass(frozen=True, slots=True)
class Source:
    """A PyTorch model with the calls it is proved on and its own answers to them.

    `program` is its exported program where it came as one. `source` is what the manifest says of it, `options` are the
    user's, with what the model itself allows.
    """

    call: TorchCall
    program: Any
    cases: tuple[Case, ...]
    reference: tuple[tuple[np.ndarray, ...], ...]
    source: Mapping[str, Any]
    notes: tuple[str, ...]
    options: Options

    def written(self, path: Path, before: Candidate) -> Candidate:
        """`before`, this model as it came, as the file at `path`, to be compared with its own answers."""
        return Candidate(
            path=path,
            precision="fp32",
            source=self.source,
            cases=self.cases,
            reference=self.reference,
            reference_kind="torch",
            tools={"torch": str(torch.__version__)},
            notes=(*before.notes, *self.notes),
            max_rows=self.options.max_rows,
        )


def open_source(candidate: Candidate, options: Options, say: Say) -> Source:
    """The model behind `candidate.path`, loaded and run. Raises: as `convert`."""
    say("loading the PyTorch model")
    factory: dict[str, Any] = {}
    program: Any = None
    notes: tuple[str, ...] = ()
    if candidate.source["kind"] == Format.PT2:
        from converters.torch.pt2 import load_program

        program = load_program(candidate.path, options.trust_pickle)
        call, notes = of_program(program, options)
    elif candidate.source["kind"] == Format.TORCHSCRIPT_FILE:
        module, notes = load_script(candidate.path, options.trust_pickle)
        call = replace(of_module(module, options), keywords=frozenset())
    else:
        module, notes = load_module(candidate.path, options)
        call = of_module(module, options)
        factory = {"factory": options.factory} if isinstance(options.factory, str) else {}
    options = replace(options, max_rows=min(options.max_rows, call.max_rows), inputs=call.examples or options.inputs)
    cases = cases_for(call.specs, options, call.batched)
    say("running the PyTorch model")
    reference = tuple(answer(call, case) for case in cases)
    return Source(call, program, cases, reference, {**candidate.source, **factory}, notes, options)


def _convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    found = open_source(candidate, options, say)
    call, cases = found.call, found.cases
    say("exporting to ONNX")
    path = work / MODEL_FILE
    if isinstance(call.module, torch.jit.ScriptModule):
        _export_script(call, cases[0], path)
    else:
        _to_onnx(export(call, cases[0]) if found.program is None else found.program, path)
    _finish(path, call, tuple(output_names(call, cases[0])))
    made = found.written(path, candidate)
    return replace(made, tools={**made.tools, "onnx": onnx.__version__, "opset": str(OPSET)})


def answer(call: TorchCall, case: Case) -> tuple[np.ndarray, ...]:
    """The source's outputs for one case. Raises: ConversionFailed with what torch said."""
    return tuple(value.detach().cpu().contiguous().numpy() for _, value in _leaves(call, case))


def output_names(call: TorchCall, case: Case) -> Iterator[str]:
    """Names for the outputs: a dict's keys or a named tuple's fields, otherwise `output`, or `output_0`, `output_1`.

    An output called as an input gets `_out` behind its name.
    """
    leaves = _leaves(call, case)
    taken = {spec.name for spec in call.specs}
    for i, (key, _) in enumerate(leaves):
        name = key or ("output" if len(leaves) == 1 else f"output_{i}")
        while name in taken:
            name += "_out"
        taken.add(name)
        yield name


def _leaves(call: TorchCall, case: Case) -> list[tuple[str, torch.Tensor]]:
    try:
        with torch.inference_mode():
            found = call.run({name: torch.from_numpy(array) for name, array in case.inputs.items()})
    except Exception as error:  # the user's model may raise anything
        raise ConversionFailed(
            f"the PyTorch model fails on {case.rows} rows of {case.origin} data: {type(error).__name__}: {brief(error)}"
        ) from None
    leaves = [leaf for leaf in _flat(found, "") if leaf[1] is not None]
    odd = [type(value).__name__ for _, value in leaves if not isinstance(value, torch.Tensor)]
    if odd or not leaves:
        raise ConversionFailed(f"the PyTorch model must answer with tensors, got {odd[0] if odd else 'nothing'}")
    return leaves


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(item, f"{key}_{name}" if key else str(name))
    elif isinstance(value, tuple | list):
        fields = getattr(value, "_fields", None)
        for i, item in enumerate(value):
            inner = fields[i] if fields else (f"{key}_{i}" if key else "")
            yield from _flat(item, inner)
    else:
        yield key, value


def _example(call: TorchCall, case: Case) -> dict[str, torch.Tensor]:
    arrays = {name: take(array, range(EXAMPLE_ROWS)) if call.batched else array for name, array in case.inputs.items()}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _export_script(call: TorchCall, case: Case, path: Path) -> None:
    free = [{axis: name for axis, name in {**axes, 0: ROWS}.items() if axis or call.batched} for axes in call.axes]
    args, _ = call.arguments(_example(call, case))
    export_script(call.module, args, [spec.name for spec in call.specs], free, OPSET, path)


def export(call: TorchCall, case: Case) -> Any:
    """The model as a `torch.export.ExportedProgram` with free rows. Raises: ConversionFailed with what torch said."""
    args, kwargs = call.arguments(_example(call, case))
    free = {
        spec.name: {axis: torch.export.Dim.DYNAMIC for axis in axes if axis or call.batched}
        for spec, axes in zip(call.specs, call.axes, strict=True)
    }
    shapes = {parameter: free[name] for parameter, name in call.parameters(tuple(kwargs)).items()}
    try:
        return torch.export.export(call.module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        text = brief(error)
        hint = ". Is the batch size baked in? --max-rows 1 serves it unbatched" if "shape[0]" in text else ""
        raise ConversionFailed(f"torch.export: {type(error).__name__}: {text}{hint}") from None


def _to_onnx(program: Any, path: Path) -> Path:
    large = sum(t.numel() * t.element_size() for t in program.state_dict.values()) >= INLINE_BYTES
    try:
        exported = torch.onnx.export(program, (), dynamo=True, opset_version=OPSET, verbose=False)
        assert exported is not None
        exported.save(str(path), external_data=large)
    except Exception as error:
        raise ConversionFailed(f"torch.onnx: {type(error).__name__}: {brief(error)}") from None
    return path


def _finish(path: Path, call: TorchCall, outputs: Sequence[str]) -> None:
    """Name what clients see, and refuse what the exporter lets pass in silence."""
    model = onnx.load(path, load_external_data=False)
    if len(model.graph.input) != len(call.specs) or len(model.graph.output) != len(outputs):
        raise ConversionFailed(
            f"torch.onnx: expected {len(call.specs)} inputs and {len(outputs)} outputs, the graph has "
            f"{len(model.graph.input)} and {len(model.graph.output)}; does the model ignore an input?"
        )
    training = [node.op_type for node in model.graph.node if _trains(node)]
    if training:
        raise ConversionFailed(f"the model was exported in training mode ({training[0]}): call eval() before export")
    drop_traces(model)
    name_interface(model, [spec.name for spec in call.specs], outputs)
    name_dimensions(model, [{**axes, 0: ROWS} if call.batched else axes for axes in call.axes])
    onnx.save(model, path)
    check(path)


def _trains(node: onnx.NodeProto) -> bool:
    if node.op_type == "BatchNormalization":
        return any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    return bool(node.op_type == "Dropout" and len(node.input) > 2 and node.input[2])


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's warnings about torchvision and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
