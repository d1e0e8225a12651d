"""Exported PyTorch programs (`.pt2`), run by PyTorch on the CPU.

The archive is rebuilt from its plain parts before torch sees it (see `converters.pt2`): what serves never runs code
that came with a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from cluster.artifact import Artifact
from cluster.errors import ConversionFailed, EngineFailed, InvalidRequest, ServingError
from cluster.tensors import ANY, DTYPES, Signature, TensorSpec
from converters.candidate import Options
from converters.interface import check_inputs, check_manifest, check_rows, kept_order, may_lose_rows
from converters.onnx_failures import brief
from converters.pt2 import load_program
from converters.runtime import Arrays, Specs
from converters.torch_calls import TorchCall, of_program

_DTYPE_OF = {np.dtype(text): name for name, (text, size) in DTYPES.items() if size}


class Pt2Runtime:
    """One program behind the signature it serves."""

    def __init__(self, call: TorchCall, signature: Signature) -> None:
        self._call = call
        self._signature = signature
        self._names = [spec.name for spec in signature.inputs]
        self._row_guard = may_lose_rows(signature)

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Arrays) -> Arrays:
        """See `converters.runtime.Runtime.run`."""
        check_inputs(self._signature, inputs)
        tensors = {name: torch.tensor(array) for name, array in zip(self._names, inputs, strict=True)}
        try:
            with torch.inference_mode():
                leaves = pytree.tree_leaves(self._call.run(tensors))
        except Exception as error:
            raise failure_of(error) from None
        outputs = tuple(leaf.contiguous().numpy() for leaf in leaves if leaf is not None)
        if self._row_guard:
            check_rows(self._signature.outputs, inputs[0].shape[0], outputs)
        return outputs


def open_artifact(artifact: Artifact, threads: int, accelerator: str) -> Pt2Runtime:
    """The runtime of a `pytorch` artifact. Raises as `converters.runtime.open_runtime`."""
    if accelerator == "gpu":
        raise EngineFailed("accelerator: expected gpu, but exported programs are served on the CPU")
    torch.set_num_threads(threads)
    program, call = _open(artifact.model_path)
    signature = check_manifest(artifact, *_specs(artifact.model_path, program, call))
    return Pt2Runtime(call, signature)


def describe_model(model: Path) -> tuple[Specs, Specs]:
    """Input and output specs of a program. Raises: EngineFailed, InvalidRequest."""
    return _specs(model, *_open(model))


def _open(model: Path) -> tuple[Any, TorchCall]:
    try:
        program = load_program(model, False)
        call, _ = of_program(program, Options())
    except ConversionFailed as error:
        raise EngineFailed(error.message) from None
    return program, call


def _specs(model: Path, program: Any, call: TorchCall) -> tuple[Specs, Specs]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    made = [values.get(name) for name in program.graph_signature.user_outputs if isinstance(name, str)]
    names = kept_order(model).get("outputs") or [f"output_{i}" for i in range(len(made))]
    outputs = []
    for name, value in zip(names, made, strict=True):
        found = None
        if isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16 and "float8" not in str(value.dtype):
            found = _DTYPE_OF.get(np.dtype(str(value.dtype).removeprefix("torch.")))
        if found is None or value is None:
            raise InvalidRequest(f"{name}: expected a tensor of {', '.join(DTYPES)}")
        outputs.append(TensorSpec(name, found, tuple(d if isinstance(d, int) else ANY for d in value.shape)))
    return call.specs, tuple(outputs)


def failure_of(error: Exception) -> ServingError:
    """What to raise for an error of a program that has answered its sample, with a message of one line."""
    reason = brief(Exception(str(error).split("\n")[0]))
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in reason:
        return EngineFailed(f"PyTorch: {reason}")
    if isinstance(error, RuntimeError | IndexError | ValueError | AssertionError | ZeroDivisionError):
        return InvalidRequest(f"the model refuses these inputs: {reason}")
    return EngineFailed(f"PyTorch: {type(error).__name__}: {reason}")
