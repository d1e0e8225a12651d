"""The source's answers to the artifact's sample, for what could not be run where it was made.

Whoever runs it first compares: an engine built here is proved here, on the spot, by its few rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from cluster.artifact import SAMPLE, Artifact
from cluster.errors import ArtifactCorrupt, EngineFailed
from cluster.tensors import TensorSpec
from converters.proof.parity import Tolerance, compare
from converters.runtime import Arrays, Runtime

ANSWERS = "answers.npz"


def write_answers(folder: Path, outputs: Sequence[TensorSpec], answers: Arrays) -> None:
    """Keep what the source answers to the sample in `folder`, by output name."""
    arrays = {spec.name: array for spec, array in zip(outputs, answers, strict=True)}
    np.savez_compressed(folder / ANSWERS, **arrays)  # type: ignore[arg-type]  # see converters.worker


def check_answers(runtime: Runtime, artifact: Artifact) -> bool:
    """Whether the artifact holds answers that `runtime` could be compared with; if so, it gives them.

    They must be as near as `parity.json` asks of all data, but for one row whose top class may differ: these are few.

    Raises: EngineFailed if they are not, ArtifactCorrupt if sample or answers cannot be read.
    """
    if not (artifact.path / ANSWERS).is_file():
        return False
    signature = artifact.manifest.signature
    inputs = _arrays(artifact.path / SAMPLE, signature.inputs)
    expected = _arrays(artifact.path / ANSWERS, signature.outputs)
    try:
        tolerance = msgspec.convert(artifact.parity().get("tolerance"), Tolerance)
    except msgspec.ValidationError as error:
        raise ArtifactCorrupt(f"parity.json: tolerance: {error}") from None
    rows = max(1, *(array.shape[0] if array.ndim else 1 for array in expected), 1)
    tolerance = replace(tolerance, min_top1=min(tolerance.min_top1, 1 - 1 / rows))
    failures = [
        f"{spec.name}: {text}"
        for spec, e, g in zip(signature.outputs, expected, runtime.run(inputs), strict=True)
        for text in compare(spec.name, [e], [g], tolerance).failures
    ]
    if failures:
        raise EngineFailed(f"what runs here does not answer the sample as the source does: {'; '.join(failures)}")
    return True


def _arrays(file: Path, specs: Sequence[TensorSpec]) -> Arrays:
    try:
        with np.load(file, allow_pickle=False) as found:
            return tuple(np.ascontiguousarray(found[spec.name]) for spec in specs)
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactCorrupt(f"{file.name}: {error}") from None
