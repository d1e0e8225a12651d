"""TorchScript archives, run by torch's own interpreter.

An archive says neither which types and shapes it takes nor what it answers with, so that lies beside it
(`interface.json`). It is rebuilt from its plain parts before torch sees it (see `converters.torch.script`), here as in
a conversion: an artifact is data, whoever made it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.artifact import Artifact
from cluster.errors import ArtifactCorrupt, ConversionFailed, EngineFailed, ServingError
from cluster.tensors import TensorSpec
from converters.interface import FILE, check_manifest
from converters.runtime import Specs
from converters.torch.runtime import OFF, ON, TorchRuntime, device_of, use_threads, wants_compiled
from converters.torch.script import load_script, settled

log = logging.getLogger(__name__)


def write_specs(model: Path, inputs: Specs, outputs: Specs) -> None:
    """Keep beside the archive what it takes and gives, inputs in the order of its arguments."""
    sides = {"inputs": inputs, "outputs": outputs}
    names = {side: [spec.name for spec in specs] for side, specs in sides.items()}
    known = {
        side: [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in specs]
        for side, specs in sides.items()
    }
    (model.parent / FILE).write_text(json.dumps({**names, "specs": known}, indent=2) + "\n")


def describe_model(model: Path) -> tuple[Specs, Specs]:
    """Input and output specs of an archive. Raises: ArtifactCorrupt, EngineFailed."""
    inputs, outputs = _kept_specs(model)
    _load(model, torch.device("cpu"), len(inputs))
    return inputs, outputs


def open_artifact(artifact: Artifact, threads: int, accelerator: str) -> TorchRuntime:
    """The runtime of a `torchscript` artifact. Raises as `converters.runtime.open_runtime`."""
    device = device_of(accelerator)
    use_threads(threads)
    model = artifact.model_path
    inputs, outputs = _kept_specs(model)
    signature = check_manifest(artifact, inputs, outputs)
    module = _load(model, device, len(inputs))
    wanted = wants_compiled(artifact.manifest.extra, device)
    if wanted != OFF:
        try:
            module = frozen(module)
        except EngineFailed as error:
            if wanted == ON:
                raise
            log.warning("served as it is, not frozen: %s", error.message)
    return TorchRuntime(lambda tensors: module(*tensors), signature, device)


def frozen(module: Any) -> Any:
    """The module with its weights as constants, its layers folded and its operators the device's own.

    Raises: EngineFailed with what torch said.
    """
    try:
        with settled():
            return torch.jit.optimize_for_inference(torch.jit.freeze(module.eval()))
    except Exception as error:
        raise EngineFailed(f"PyTorch: the script cannot be frozen: {str(error).splitlines()[0][:200]}") from None


def _load(model: Path, device: torch.device, inputs: int) -> Any:
    # Fusions that are made for single shapes would be made again for every number of rows.
    with settled():
        torch.jit.set_fusion_strategy([("DYNAMIC", 1)])
    try:
        module, _ = load_script(model, False, advice="", device=str(device))
    except ConversionFailed as error:
        raise EngineFailed(error.message) from None
    arguments = module.forward.schema.arguments[1:]
    least = sum(not argument.has_default_value() for argument in arguments)
    if not least <= inputs <= len(arguments):
        raise ArtifactCorrupt(f"{FILE}: it says {inputs} inputs, the model takes {[a.name for a in arguments]}")
    return module


def _kept_specs(model: Path) -> tuple[Specs, Specs]:
    file = model.parent / FILE
    try:
        known = json.loads(file.read_bytes())["specs"]
        return _specs(known["inputs"]), _specs(known["outputs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ServingError) as error:
        raise ArtifactCorrupt(
            f"{FILE}: expected the types and shapes of inputs and outputs ({type(error).__name__})"
        ) from None


def _specs(entries: Sequence[Any]) -> Specs:
    return tuple(TensorSpec(entry["name"], entry["dtype"], tuple(entry["shape"])) for entry in entries)
