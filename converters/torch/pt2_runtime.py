"""Exported PyTorch programs (`.pt2`), run by PyTorch, as they are or compiled for the machine.

The archive is rebuilt from its plain parts before torch sees it (see `converters.torch.pt2`): what serves never runs
code that came with a model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.artifact import Artifact
from cluster.derived import DerivedFiles
from cluster.errors import ConversionFailed, EngineFailed, InvalidRequest
from cluster.tensors import ANY, DTYPES, TensorSpec
from converters.candidate import Options
from converters.interface import check_manifest, kept_order
from converters.onnx.failures import brief
from converters.runtime import Specs
from converters.torch.calls import TorchCall, of_program
from converters.torch.compiled import compiled_call, on_device
from converters.torch.pt2 import load_program
from converters.torch.runtime import OFF, ON, Call, TorchRuntime, device_of, dtype_name, use_threads, wants_compiled

log = logging.getLogger(__name__)


def open_artifact(
    artifact: Artifact, threads: int, accelerator: str, derived: DerivedFiles | None = None
) -> TorchRuntime:
    """The runtime of a `pytorch` artifact. Raises as `converters.runtime.open_runtime`.

    Compiled code that cannot be had is an error where it was asked for, and one line in the log where it was only
    found to be quicker.
    """
    device = device_of(accelerator)
    use_threads(threads)
    model = artifact.model_path
    program, call = _open(model, device)
    signature = check_manifest(artifact, *specs_of(model, program, call))
    names = [spec.name for spec in signature.inputs]
    quick: Call | None = None
    wanted = wants_compiled(artifact.manifest.extra, device)
    if wanted != OFF:
        try:
            quick = compiled_call(model, program, artifact.digest, threads, device, derived)
        except EngineFailed as error:
            if wanted == ON:
                raise
            log.warning("served as it is, not compiled: %s", error.message)

    def run(tensors: Sequence[torch.Tensor]) -> Any:
        return call.run(dict(zip(names, tensors, strict=True)))

    return TorchRuntime(run, signature, device, quick)


def describe_model(model: Path) -> tuple[Specs, Specs]:
    """Input and output specs of a program. Raises: EngineFailed, InvalidRequest."""
    return specs_of(model, *_open(model, torch.device("cpu")))


def _open(model: Path, device: torch.device) -> tuple[Any, TorchCall]:
    try:
        program = load_program(model, False, advice="")
        if device.type != "cpu":
            program = on_device(program, device)
        call, _ = of_program(program, Options())
    except ConversionFailed as error:
        raise EngineFailed(error.message) from None
    except RuntimeError as error:  # the device's
        raise EngineFailed(f"{model.name}: PyTorch cannot move it to {device}: {brief(error)}") from None
    return program, call


def specs_of(model: Path, program: Any, call: TorchCall) -> tuple[Specs, Specs]:
    """Input and output specs of a program, outputs called as the model's interface says. Raises: InvalidRequest."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    made = [values.get(name) for name in program.graph_signature.user_outputs if isinstance(name, str)]
    names = kept_order(model).get("outputs") or [f"output_{i}" for i in range(len(made))]
    outputs = []
    for name, value in zip(names, made, strict=True):
        found = dtype_name(value.dtype) if isinstance(value, torch.Tensor) else None
        if found is None or value is None:
            raise InvalidRequest(f"{name}: expected a tensor of {', '.join(DTYPES)}")
        outputs.append(TensorSpec(name, found, tuple(d if isinstance(d, int) else ANY for d in value.shape)))
    return call.specs, tuple(outputs)
