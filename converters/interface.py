"""The order of inputs and outputs where a model's format keeps none, and the checks of runtimes that have none.

SavedModel and TFLite know their inputs and outputs by name only. Clients see the order in a model's metadata, and
proofs compare by it, so it is kept in a file beside the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cluster.artifact import Artifact
from cluster.errors import ArtifactCorrupt, InvalidRequest
from cluster.tensors import ANY, Signature, TensorSpec
from converters.runtime import Arrays, Specs

FILE = "interface.json"

# Set to 1 in a process's environment, its runtimes load models that may do more than compute. That is for whoever runs
# the process to say, never for an artifact.
TRUST = "PRISM_TRUST_MODELS"


def write_order(model: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Keep the names' order beside the model file."""
    (model.parent / FILE).write_text(json.dumps({"inputs": list(inputs), "outputs": list(outputs)}, indent=2) + "\n")


def in_order(model: Path, inputs: Specs, outputs: Specs) -> tuple[Specs, Specs]:
    """The specs in the order that was kept; by name where none was. Raises: ArtifactCorrupt if names differ."""
    kept = kept_order(model)
    found = []
    for side, specs in (("inputs", inputs), ("outputs", outputs)):
        by_name = {spec.name: spec for spec in specs}
        names = kept.get(side, sorted(by_name))
        if sorted(names) != sorted(by_name):
            raise ArtifactCorrupt(f"{FILE}: {side}: it says {sorted(names)}, the model has {sorted(by_name)}")
        found.append(tuple(by_name[name] for name in names))
    return found[0], found[1]


def kept_order(model: Path) -> dict[str, list[str]]:
    """Names by side ("inputs", "outputs"), or {} where no order was kept. Raises: ArtifactCorrupt."""
    file = model.parent / FILE
    if not file.is_file():
        return {}
    try:
        kept: dict[str, list[str]] = json.loads(file.read_bytes())
    except ValueError as error:
        raise ArtifactCorrupt(f"{FILE}: {error}") from None
    return kept


def check_manifest(artifact: Artifact, inputs: Specs, outputs: Specs) -> Signature:
    """The manifest's signature. Raises: ArtifactCorrupt unless the model has those names and types."""
    signature = artifact.manifest.signature
    for side, stated, actual in (("inputs", signature.inputs, inputs), ("outputs", signature.outputs, outputs)):
        said, has = ({spec.name: spec.dtype for spec in specs} for specs in (stated, actual))
        if said != has:
            raise ArtifactCorrupt(f"manifest.signature.{side}: it says {said}, the model has {has}")
    return signature


def check_inputs(signature: Signature, inputs: Arrays) -> None:
    """Raises: InvalidRequest for a shape that the signature does not have."""
    for spec, array in zip(signature.inputs, inputs, strict=True):
        if not spec.admits(array.shape):
            raise InvalidRequest(
                f"the model refuses these inputs: {spec.name}: expected shape {list(spec.shape)}, "
                f"got {list(array.shape)}"
            )


def may_lose_rows(signature: Signature) -> bool:
    """Whether sizes that a client chose could move values between the rows and another dimension."""
    return signature.batched and any(ANY in spec.shape[1:] for spec in signature.inputs)


def check_rows(specs: Sequence[TensorSpec], rows: int, outputs: Sequence[np.ndarray]) -> None:
    """Raises: InvalidRequest for an output that does not have one row per input row."""
    for spec, array in zip(specs, outputs, strict=True):
        if array.shape[:1] != (rows,):
            raise InvalidRequest(
                f"the model refuses these inputs: from {rows} rows of these sizes it makes {spec.name} of shape "
                f"{list(array.shape)}"
            )
