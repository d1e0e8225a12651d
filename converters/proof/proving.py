"""Proves a candidate with the runtime that will serve it, and measures it.

The signature is decided by evidence: rows share a call only if the model answered calls of several sizes with as many
rows, and a row answered alone equals the same row answered in company.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.artifact import PARITY, PROFILE, Artifact, write_manifest
from cluster.errors import ConversionFailed
from cluster.tensors import ANY, Signature, TensorSpec
from converters.candidate import Candidate, Case, Options, Say
from converters.isolated import describe, run_cases, run_task
from converters.proof.evaluation import ORIGIN as EVALUATION
from converters.proof.evaluation import Evaluation, evaluate
from converters.proof.parity import OutputParity, Parity, Tolerance, compare, tolerance_for
from converters.proof.report import sample_points
from converters.proof.sample_answers import write_answers
from converters.ranges import EDGE
from converters.runtime import Arrays, Specs
from converters.samples import cases_notes, labelled, take
from converters.sealing import check_labels, manifest_of, write_json, write_sample

ALONE_ROWS = 3  # rows that are answered alone too


@dataclass(frozen=True, slots=True)
class Answers:
    """What the candidate answered: to every case, to the first case again, and to single rows of the largest."""

    cases: tuple[Arrays, ...]
    again: Arrays
    alone: tuple[Arrays, ...]
    largest: int  # index of the case that `alone` takes its rows from


@dataclass(frozen=True, slots=True)
class Proof:
    """A proved candidate, not sealed yet. `points` are for the page's agreement plots, by output."""

    candidate: Candidate
    signature: Signature
    parity: Mapping[str, Any]
    points: Mapping[str, tuple[list[float], list[float]]]
    profile: Mapping[str, Any]
    notes: tuple[str, ...]


def prove(candidate: Candidate, options: Options, say: Say) -> Proof:
    """Evidence that the candidate answers as its source does, and what it costs; both are written to its folder.

    A candidate that cannot be run here is represented by the model it was made from, and the evidence says so.

    Raises: ConversionFailed if the model cannot be run or does not agree with its source.
    """
    folder = candidate.root
    options = replace(options, max_rows=min(options.max_rows, candidate.max_rows))
    asked = candidate
    if candidate.stand_in is not None:
        asked = replace(candidate, path=candidate.stand_in, format="onnx", folder=None)
    inputs, outputs = describe(asked.path, asked.format)
    loose = Signature(inputs, outputs, batched=False, max_rows=1)
    sample = write_sample(folder, candidate.cases, inputs)
    artifact = write_manifest(asked.root, manifest_of(asked, loose, options))
    say(f"comparing {len(candidate.cases)} calls with the source")
    free = options.max_rows > 1 and all(spec.shape and spec.shape[0] == ANY for spec in inputs)
    answers = ask(artifact, candidate.cases, inputs, free, options)
    signature, notes = signature_from(inputs, outputs, candidate.cases, answers, free, options.max_rows)
    tolerance = tolerance_for(candidate.precision, options.tolerance)
    pairs = pairs_of(candidate, signature, answers)
    parity = judge(candidate, signature, pairs, tolerance)
    batching = batching_parity(signature, answers, tolerance) if signature.batched else ()
    refuse_failures(parity, batching, candidate)
    check_labels(options.labels, signature)
    evaluation = evaluated(candidate, signature, answers, options)
    if evaluation is not None and evaluation.failure:
        raise ConversionFailed(f"the {candidate.precision} model is not good enough: {evaluation.failure}")
    notes = (*candidate.notes, *notes, *cases_notes(candidate.cases, signature.inputs, options, signature.batched))
    if evaluation is not None and evaluation.note:
        notes = (*notes, evaluation.note)
    written = {
        **parity.to_json(),
        "batching": _brief(batching),
        "evaluation": evaluation.to_json() if evaluation is not None else None,
        "executed": not candidate.unexecuted,
        "unexecuted": candidate.unexecuted or None,
        "notes": [*notes, *([candidate.unexecuted] if candidate.unexecuted else [])],
    }
    write_json(folder / PARITY, written)
    if candidate.unexecuted:
        write_answers(folder, signature.outputs, (candidate.reference or answers.cases)[sample])
    write_manifest(folder, manifest_of(candidate, signature, options, notes=notes))
    profile: dict[str, Any] = {}
    if not candidate.unexecuted:
        say("measuring seconds per batch")
        profile = profiled(folder, options)
    write_json(folder / PROFILE, {"devices": {options.device: profile} if profile else {}})
    points = {
        spec.name: sample_points([e[i] for e, _ in pairs], [g[i] for _, g in pairs])
        for i, spec in enumerate(signature.outputs)
    }
    return Proof(candidate, signature, written, points, profile, notes)


def profiled(folder: Path, options: Options) -> dict[str, Any]:
    """What the artifact in `folder` costs on `options.device`, measured in a process of its own."""
    request = {
        "task": "profile",
        "artifact": str(folder),
        "threads": options.threads,
        "budget_s": options.profile_s,
        "device": options.device,
    }
    return run_task(request, "profiling", trusted=options.trust_pickle)


def evaluated(candidate: Candidate, signature: Signature, answers: Answers, options: Options) -> Evaluation | None:
    """The task metric on the evaluation's calls, or None where none was asked for."""
    if options.evaluate is None:
        return None
    at = [i for i, case in enumerate(candidate.cases) if case.origin == EVALUATION]
    _, labels = labelled(options.evaluate, [spec.name for spec in signature.inputs])
    names = [spec.name for spec in signature.outputs]
    expected = [candidate.reference[i] for i in at] if candidate.reference else []
    return evaluate(options.metric, options.max_drop, names, labels, expected, [answers.cases[i] for i in at])


def reference_from(candidate: Candidate, options: Options) -> tuple[Arrays, ...]:
    """What the candidate itself answers to its cases, as the reference of what is made from it.

    Raises: ConversionFailed if it fails on one of them.
    """
    inputs, outputs = describe(candidate.path, candidate.format)
    loose = Signature(inputs, outputs, batched=False, max_rows=1)
    artifact = write_manifest(candidate.root, manifest_of(candidate, loose, options))
    return ask(artifact, candidate.cases, inputs, False, replace(options, device="cpu")).cases


def ask(artifact: Artifact, cases: Sequence[Case], inputs: Specs, free: bool, options: Options) -> Answers:
    """Run everything the proof needs, in one process. Raises: ConversionFailed, naming the rows that failed."""
    calls = [tuple(case.inputs[spec.name] for spec in inputs) for case in cases]
    largest = max(range(len(cases)), key=lambda i: cases[i].rows)
    alone = [
        tuple(take(array, range(row, row + 1)) for array in calls[largest])
        for row in range(min(ALONE_ROWS, cases[largest].rows) if free else 0)
    ]
    every = [*calls, calls[0], *alone]
    found = run_cases(artifact.path, every, options.threads, options.device, options.trust_pickle)
    good: list[Arrays] = []
    for i, result in enumerate(found):
        if isinstance(result, str):
            case = cases[i] if i < len(cases) else Case("sample", 1, {})
            worked = sorted({cases[j].rows for j in range(min(i, len(cases))) if not isinstance(found[j], str)})
            if free and worked and not case.origin.startswith(EDGE):
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


def pairs_of(candidate: Candidate, signature: Signature, answers: Answers) -> list[tuple[Arrays, Arrays]]:
    """What to compare, call by call: the source's outputs with the model's, or the model's with its own.

    Raises: ConversionFailed if the source has another number of outputs.
    """
    if candidate.reference:
        pairs = list(zip(candidate.reference, answers.cases, strict=True))
    else:
        pairs = [(answers.cases[0], answers.again)]
        if signature.batched:
            pairs += zip(answers.alone, _in_company(answers), strict=True)
    counts = {len(signature.outputs), *(len(expected) for expected, _ in pairs)}
    if len(counts) > 1:
        raise ConversionFailed(f"expected {len(pairs[0][0])} outputs as the source has, got {len(signature.outputs)}")
    return pairs


def judge(
    candidate: Candidate, signature: Signature, pairs: Sequence[tuple[Arrays, Arrays]], tolerance: Tolerance
) -> Parity:
    """The comparison of every output over all calls."""
    cases = tuple(case.describe() for case in candidate.cases)
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


def _brief(outputs: Sequence[OutputParity]) -> list[dict[str, Any]]:
    return [
        {"name": o.name, "rows": "alone and in company", "worst_abs": o.worst_abs, "share_out": o.share_out}
        for o in outputs
    ]
