"""Proves a candidate with the runtime that will serve it, measures it, and writes its artifact directory.

The signature is decided by evidence: rows share a call only if the model answered calls of several sizes with as many
rows, and a row answered alone equals the same row answered in company.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cluster import __version__
from cluster.artifact import PARITY, PROFILE, SAMPLE, Artifact, Manifest, hash_files, write_manifest
from cluster.errors import ConversionFailed, InvalidRequest
from cluster.tensors import ANY, Signature, TensorSpec
from converters.candidate import Candidate, Case, Options, Say
from converters.isolated import describe, run_cases, run_task
from converters.parity import OutputParity, Parity, Tolerance, compare, tolerance_for
from converters.runtime import Arrays
from converters.samples import take

ALONE_ROWS = 3  # rows that are answered alone too
SAMPLE_ROWS = 4


@dataclass(frozen=True, slots=True)
class Answers:
    """What the candidate answered: to every case, to the first case again, and to single rows of the largest."""

    cases: tuple[Arrays, ...]
    again: Arrays
    alone: tuple[Arrays, ...]
    largest: int  # index of the case that `alone` takes its rows from


def prove(candidate: Candidate, options: Options, say: Say) -> Artifact:
    """The artifact in `candidate.path`'s folder, written and verified.

    Raises: ConversionFailed if the model cannot be run or does not agree with its source.
    """
    folder = candidate.root
    options = replace(options, max_rows=min(options.max_rows, candidate.max_rows))
    inputs, outputs = describe(candidate.path, candidate.format)
    loose = Signature(inputs, outputs, batched=False, max_rows=1)
    _write_sample(folder, candidate.cases, inputs)
    artifact = write_manifest(folder, _manifest(candidate, loose, options, files={}))
    say(f"comparing {len(candidate.cases)} calls with the source")
    free = options.max_rows > 1 and all(spec.shape and spec.shape[0] == ANY for spec in inputs)
    answers = ask(artifact, candidate.cases, inputs, free, options.threads)
    signature, notes = signature_from(inputs, outputs, candidate.cases, answers, free, options.max_rows)
    tolerance = tolerance_for(candidate.precision, options.tolerance)
    parity = judge(candidate, signature, answers, tolerance)
    batching = batching_parity(signature, answers, tolerance) if signature.batched else ()
    refuse_failures(parity, batching, candidate)
    _check_labels(options.labels, signature)
    notes = (*candidate.notes, *notes)
    _write_json(folder / PARITY, {**parity.to_json(), "batching": _brief(batching), "notes": list(notes)})
    manifest = _manifest(candidate, signature, options, files={}, notes=notes)
    write_manifest(folder, manifest)
    say("measuring seconds per batch")
    request = {
        "task": "profile",
        "artifact": str(folder),
        "threads": options.threads,
        "budget_s": options.profile_s,
    }
    _write_json(folder / PROFILE, {"devices": {"cpu": run_task(request, "profiling")}})
    artifact = write_manifest(folder, _manifest(candidate, signature, options, files=hash_files(folder), notes=notes))
    artifact.verify()
    return artifact


def reference_from(candidate: Candidate, options: Options) -> tuple[Arrays, ...]:
    """What the candidate itself answers to its cases, as the reference of what is made from it.

    Raises: ConversionFailed if it fails on one of them.
    """
    inputs, outputs = describe(candidate.path, candidate.format)
    loose = Signature(inputs, outputs, batched=False, max_rows=1)
    artifact = write_manifest(candidate.root, _manifest(candidate, loose, options, files={}))
    return ask(artifact, candidate.cases, inputs, False, options.threads).cases


def ask(artifact: Artifact, cases: Sequence[Case], inputs: Sequence[TensorSpec], free: bool, threads: int) -> Answers:
    """Run everything the proof needs, in one process. Raises: ConversionFailed, naming the rows that failed."""
    calls = [tuple(case.inputs[spec.name] for spec in inputs) for case in cases]
    largest = max(range(len(cases)), key=lambda i: cases[i].rows)
    alone = [
        tuple(take(array, range(row, row + 1)) for array in calls[largest])
        for row in range(min(ALONE_ROWS, cases[largest].rows) if free else 0)
    ]
    found = run_cases(artifact.path, [*calls, calls[0], *alone], threads)
    good: list[Arrays] = []
    for i, result in enumerate(found):
        if isinstance(result, str):
            case = cases[i] if i < len(cases) else Case("sample", 1, {})
            worked = sorted({cases[j].rows for j in range(min(i, len(cases))) if not isinstance(found[j], str)})
            if free and worked:
                raise ConversionFailed(
                    f"rows: the model says that its rows are free, and answers {worked[0]}, but with {case.rows} rows "
                    f"it fails: {result}. Is the batch size baked in? --max-rows 1 serves it unbatched"
                )
            raise ConversionFailed(f"the model fails on {case.rows} rows of {case.origin} data: {result}")
        good.append(result)
    count = len(cases)
    return Answers(tuple(good[:count]), good[count], tuple(good[count + 1 :]), largest)


def signature_from(
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    cases: Sequence[Case],
    answers: Answers,
    free: bool,
    max_rows: int,
) -> tuple[Signature, tuple[str, ...]]:
    """What the model takes and gives, with output shapes corrected by what was seen, and notes for the user."""
    seen = [[answer[i].shape for answer in answers.cases] for i in range(len(outputs))]
    notes: list[str] = []
    odd = next(
        (
            spec.name
            for spec, shapes in zip(outputs, seen, strict=True)
            if any(shape[:1] != (case.rows,) for shape, case in zip(shapes, cases, strict=True))
        ),
        None,
    )
    batched = free and odd is None
    if free and odd is not None:
        notes.append(f"output {odd} does not have one row per input row: requests are not batched")
    settled = tuple(_settle(spec, shapes, batched) for spec, shapes in zip(outputs, seen, strict=True))
    return Signature(inputs, settled, batched, max_rows if batched else 1), tuple(notes)


def _settle(spec: TensorSpec, shapes: Sequence[tuple[int, ...]], batched: bool) -> TensorSpec:
    shape = spec.shape
    if not all(spec.admits(s) for s in shapes):  # the file declares no rank, or a wrong size
        if len({len(s) for s in shapes}) > 1:
            raise ConversionFailed(f"output {spec.name}: its number of dimensions varies, from {sorted(set(shapes))}")
        shape = tuple(sizes[0] if len(set(sizes)) == 1 else ANY for sizes in zip(*shapes, strict=True))
    return TensorSpec(spec.name, spec.dtype, (ANY, *shape[1:]) if batched else shape)


def judge(candidate: Candidate, signature: Signature, answers: Answers, tolerance: Tolerance) -> Parity:
    """The comparison with the source's answers, or of the model with itself where there is no source."""
    cases = tuple(case.describe() for case in candidate.cases)
    if candidate.reference:
        pairs = list(zip(candidate.reference, answers.cases, strict=True))
    else:
        pairs = [(answers.cases[0], answers.again)]
        if signature.batched:
            pairs += zip(answers.alone, _in_company(answers), strict=True)
    counts = {len(signature.outputs), *(len(expected) for expected, _ in pairs)}
    if len(counts) > 1:
        raise ConversionFailed(f"expected {len(pairs[0][0])} outputs as the source has, got {len(signature.outputs)}")
    outputs = tuple(
        compare(spec.name, [e[i] for e, _ in pairs], [g[i] for _, g in pairs], tolerance)
        for i, spec in enumerate(signature.outputs)
    )
    return Parity(candidate.reference_kind, candidate.precision, tolerance, cases, outputs)


def batching_parity(signature: Signature, answers: Answers, tolerance: Tolerance) -> tuple[OutputParity, ...]:
    """Rows answered alone against the same rows answered in company."""
    company = _in_company(answers)
    return tuple(
        compare(spec.name, [alone[i] for alone in answers.alone], [together[i] for together in company], tolerance)
        for i, spec in enumerate(signature.outputs)
    )


def _in_company(answers: Answers) -> list[Arrays]:
    together = answers.cases[answers.largest]
    return [tuple(array[row : row + 1] for array in together) for row in range(len(answers.alone))]


def refuse_failures(parity: Parity, batching: Sequence[OutputParity], candidate: Candidate) -> None:
    """Raises: ConversionFailed with everything that is not near enough."""
    mixed = [f"{output.name}: {text}" for output in batching for text in output.failures]
    if mixed and (not candidate.reference or not parity.failures):
        raise ConversionFailed(
            f"rows: a row answered in company differs from the same row alone ({'; '.join(mixed)}), so requests must "
            "not share a call; --max-rows 1 serves it unbatched"
        )
    if parity.failures:
        whose = f"the {parity.kind} source" if candidate.reference else "its own answer to the same input"
        raise ConversionFailed(f"the {candidate.precision} model differs from {whose}: {'; '.join(parity.failures)}")


def _manifest(
    candidate: Candidate, signature: Signature, options: Options, files: dict[str, str], notes: Sequence[str] = ()
) -> Manifest:
    return Manifest(
        format=candidate.format,
        precision=candidate.precision,
        model_file=candidate.path.relative_to(candidate.root).as_posix(),
        signature=signature,
        source=dict(candidate.source),
        tools={"prism": __version__, "python": platform.python_version(), **candidate.tools},
        files=files,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        labels=options.labels,
        extra={**candidate.extra, **({"notes": list(notes)} if notes else {})},
    )


def _write_sample(folder: Path, cases: Sequence[Case], inputs: Sequence[TensorSpec]) -> None:
    case = next((c for c in cases if 1 < c.rows <= SAMPLE_ROWS), cases[0])
    arrays = {spec.name: case.inputs[spec.name] for spec in inputs}
    np.savez_compressed(folder / SAMPLE, **arrays)  # type: ignore[arg-type]  # see converters.worker


def _check_labels(labels: tuple[str, ...], signature: Signature) -> None:
    if labels and not any(spec.shape and spec.shape[-1] in (len(labels), ANY) for spec in signature.outputs):
        sizes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in signature.outputs)
        raise InvalidRequest(f"labels: expected as many as an output has classes ({sizes}), got {len(labels)}")


def _brief(outputs: Sequence[OutputParity]) -> list[dict[str, Any]]:
    return [
        {"name": o.name, "rows": "alone and in company", "worst_abs": o.worst_abs, "share_out": o.share_out}
        for o in outputs
    ]


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
