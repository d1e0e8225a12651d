"""The files of an artifact directory: manifest, sample, report, and the hashes that close it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cluster import __version__
from cluster.artifact import MANIFEST, PARITY, PROFILE, SAMPLE, Artifact, Manifest, hash_files, write_manifest
from cluster.errors import ConversionFailed, InvalidRequest
from cluster.tensors import ANY, Signature, TensorSpec
from converters.candidate import Candidate, Case, Options
from converters.proof.report import PAGE, Cost, Report, render
from converters.proof.sample_answers import ANSWERS

SAMPLE_ROWS = 4
EVIDENCE = {MANIFEST, PARITY, PROFILE, SAMPLE, ANSWERS, PAGE}


def seal(
    candidate: Candidate,
    signature: Signature,
    options: Options,
    report: Report,
    notes: Sequence[str],
) -> Artifact:
    """The finished artifact in the candidate's folder: report written, every file hashed and verified.

    Raises: ConversionFailed as `refuse_strays`.
    """
    folder = candidate.root
    refuse_strays(candidate)
    (folder / PAGE).write_text(render(report), encoding="utf-8")
    artifact = write_manifest(folder, manifest_of(candidate, signature, options, hash_files(folder), notes))
    artifact.verify()
    return artifact


def manifest_of(
    candidate: Candidate,
    signature: Signature,
    options: Options,
    files: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Manifest:
    """What `manifest.json` says of a candidate."""
    return Manifest(
        format=candidate.format,
        precision=candidate.precision,
        model_file=candidate.path.relative_to(candidate.root).as_posix(),
        signature=signature,
        source=dict(candidate.source),
        tools={"prism": __version__, "python": platform.python_version(), **candidate.tools},
        files=dict(files or {}),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        labels=options.labels,
        extra={**candidate.extra, **({"notes": list(notes)} if notes else {})},
    )


def refuse_strays(candidate: Candidate) -> None:
    """What a tool left beside an ONNX model must not be sealed with it: it may be large, and its name a random one.

    Raises: ConversionFailed naming every file that is neither the model's nor evidence.
    """
    if candidate.path.suffix != ".onnx":
        return
    from converters.onnx.file import external_files

    root = candidate.root
    known = {candidate.path, *(candidate.path.parent / name for name in external_files(candidate.path))}
    files = (file for file in root.rglob("*") if file.is_file() and file not in known)
    strays = sorted(file.relative_to(root).as_posix() for file in files if file.name not in EVIDENCE)
    if strays:
        raise ConversionFailed(f"{candidate.path.name}: expected nothing beside it but its weights, got {strays}")


def write_sample(folder: Path, cases: Sequence[Case], inputs: Sequence[TensorSpec]) -> int:
    """A few rows of real inputs, for warm-up: those of the case with the index that comes back."""
    chosen = next((i for i, case in enumerate(cases) if 1 < case.rows <= SAMPLE_ROWS), 0)
    arrays = {spec.name: cases[chosen].inputs[spec.name] for spec in inputs}
    np.savez_compressed(folder / SAMPLE, **arrays)  # type: ignore[arg-type]  # see converters.worker
    return chosen


def check_labels(labels: tuple[str, ...], signature: Signature) -> None:
    """Raises: InvalidRequest if no output has as many classes as there are labels."""
    if labels and not any(spec.shape and spec.shape[-1] in (len(labels), ANY) for spec in signature.outputs):
        sizes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in signature.outputs)
        raise InvalidRequest(f"labels: expected as many as an output has classes ({sizes}), got {len(labels)}")


def model_bytes(folder: Path) -> int:
    """Bytes of the model's own files in an artifact directory."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.name not in EVIDENCE)


def cost_of(name: str, folder: Path, profile: Mapping[str, Any]) -> Cost:
    """An artifact directory's size and measurements, for a report."""
    return Cost(name, model_bytes(folder), profile)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write plain values, refusing NaN, which JSON does not have."""
    file.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
