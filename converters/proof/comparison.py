"""Any two models, compared as a conversion is: the same calls, the same measures, the same page."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.artifact import MANIFEST, SAMPLE, Artifact
from cluster.errors import ConversionFailed, InvalidRequest
from cluster.tensors import ANY, Signature, TensorSpec
from converters.build import convert, ended_in_order
from converters.candidate import Case, Options, Say
from converters.formats import Format, source_format
from converters.isolated import run_cases
from converters.proof.evaluation import ORIGIN as EVALUATION
from converters.proof.evaluation import Evaluation, check_gate, evaluate
from converters.proof.pairing import pair_inputs, pair_outputs
from converters.proof.parity import TOLERANCES, Parity, compare, tolerance_for
from converters.proof.report import Report, render, sample_points
from converters.runtime import Arrays
from converters.samples import cases_for, cases_notes, labelled
from converters.sealing import cost_of
from converters.wrap import wrap

PROFILE_S = 2.0  # seconds that measuring a model which is no artifact may take: enough for the page

# The form in which a model answers most nearly as where it came from.
SERVED_AS = {
    Format.ONNX_FILE: Format.ONNX,
    Format.TORCH: Format.PYTORCH,
    Format.PT2: Format.PYTORCH,
    Format.TORCHSCRIPT_FILE: Format.TORCHSCRIPT,
    Format.SAVED_MODEL: Format.TENSORFLOW,
    Format.KERAS: Format.TENSORFLOW,
    Format.TFLITE_FILE: Format.TFLITE,
    **dict.fromkeys((Format.SKLEARN, Format.XGBOOST, Format.LIGHTGBM), Format.ONNX),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came out: `parity` as `parity.json` has it, and the page. `failures` is empty if both agree."""

    parity: Mapping[str, Any]
    page: str
    failures: tuple[str, ...]


def compare_artifacts(first: Path, second: Path, options: Options, say: Say, outputs: Sequence[str] = ()) -> Comparison:
    """How far `second` is from `first`: artifact directories, or models as they came from training.

    A model that is no artifact is made one first, in the form that its own framework runs (`SERVED_AS`). The calls are
    made of `options.sample`, or of the sample of the first of both that is an artifact; without any, of random data.
    Rows share calls where both are batched. The tolerance is that of the less precise of both.

    Args:
        outputs: Which to compare, as `pairing.pair_outputs` has it; without any, `second` must have all of `first`'s.

    Raises:
        InvalidRequest: They do not take the same inputs, or the data or `outputs` do not fit.
        ConversionFailed: One of them cannot be made an artifact or fails on a call, or they have no output in common.
    """
    check_gate(options)
    with ended_in_order(), tempfile.TemporaryDirectory(prefix="prism-") as scratch:
        known = options.sample or next((path / SAMPLE for path in (first, second) if is_artifact(path)), None)
        a = _artifact(first, Path(scratch, "a"), replace(options, sample=known), say)
        b = _artifact(second, Path(scratch, "b"), replace(options, sample=known or a.path / SAMPLE), say)
        sample = known or a.path / SAMPLE
        if sample == second / SAMPLE and options.sample is None:
            sample = _sample_for(a, b, Path(scratch, "sample.npz"))
        return _compare(a, b, (str(first), str(second)), replace(options, sample=sample), say, outputs)


def is_artifact(path: Path) -> bool:
    """Whether `path` is an artifact's directory."""
    return (path / MANIFEST).is_file()


def _artifact(path: Path, place: Path, options: Options, say: Say) -> Artifact:
    """`path` itself if it is an artifact, else what is made of it at `place`.

    It is proved on the other side's data where that fits its inputs. What does not fit is told when both are known.
    """
    if is_artifact(path):
        return wrap(path, place)
    target = SERVED_AS[source_format(path)]
    plain = replace(
        options, evaluate=None, max_drop=None, calibrate=None, tolerance={}, profile_s=min(PROFILE_S, options.profile_s)
    )
    say(f"{path.name} is run as {target}")
    try:
        (artifact,) = convert(path, place, (target,), plain, say)
    except InvalidRequest:
        if options.sample is None:
            raise
        (artifact,) = convert(path, place, (target,), replace(plain, sample=None), say)
    return artifact


def _sample_for(a: Artifact, b: Artifact, place: Path) -> Path:
    """The sample of `b` under the names that `a` has for its inputs."""
    ours, theirs = a.manifest.signature, b.manifest.signature
    order = pair_inputs(ours, theirs)
    with np.load(b.path / SAMPLE, allow_pickle=False) as sample:
        renamed = {spec.name: sample[theirs.inputs[i].name] for spec, i in zip(ours.inputs, order, strict=True)}
    np.savez(place, **renamed)
    return place


def _compare(
    a: Artifact, b: Artifact, names: tuple[str, str], options: Options, say: Say, asked: Sequence[str]
) -> Comparison:
    ours, theirs = a.manifest.signature, b.manifest.signature
    order = pair_inputs(ours, theirs)
    pairing = pair_outputs(names, ours, theirs, asked)
    columns = pairing.columns
    specs, batched, most = _calls(ours, theirs, order)
    bounded = replace(options, max_rows=most)
    cases = cases_for(specs, bounded, batched)
    say(f"comparing {len(cases)} calls")
    expected = _answers(names[0], a, cases, ours.inputs, options)
    got = _answers(names[1], b, cases, [ours.inputs[order.index(i)] for i in range(len(order))], options)
    precision = min(
        (a.manifest.precision, b.manifest.precision),
        key=lambda name: TOLERANCES.get(name, TOLERANCES["fp32"]).min_sqnr_db,
    )
    tolerance = tolerance_for(precision, options.tolerance)
    sides = {
        name: ([arrays[i] for arrays in expected], [arrays[j] for arrays in got]) for name, (i, j) in columns.items()
    }
    outputs = tuple(compare(name, e, g, tolerance) for name, (e, g) in sides.items())
    parity = Parity(names[0], precision, tolerance, tuple(case.describe() for case in cases), outputs)
    evaluation = _evaluated(options, cases, ours, columns, expected, got)
    gates = [*pairing.failures, *([evaluation.failure] if evaluation is not None and evaluation.failure else [])]
    notes = [*pairing.notes, *cases_notes(cases, specs, bounded, batched)]
    written = {
        **parity.to_json(),
        "evaluation": evaluation.to_json() if evaluation is not None else None,
        "executed": True,
        "gates": gates,
        "notes": notes,
    }
    written["passed"] = not (parity.failures or gates)
    report = Report(
        title=f"{names[1]} compared with {names[0]}",
        subtitle=f"{b.manifest.precision} against {a.manifest.precision}",
        against=names[0],
        parity=written,
        points={name: sample_points(e, g) for name, (e, g) in sides.items()},
        costs=tuple(cost_of(name, x.path, _profile(x)) for name, x in zip(reversed(names), (b, a), strict=True)),
        facts=tuple((name, f"digest {x.digest}") for name, x in zip(names, (a, b), strict=True)),
    )
    return Comparison(written, render(report), (*parity.failures, *gates))


def _calls(ours: Signature, theirs: Signature, order: Sequence[int]) -> tuple[list[TensorSpec], bool, int]:
    """What calls both take: the inputs as FIRST calls them, whether rows share a call, and the most rows of one."""
    inputs = [theirs.inputs[i] for i in order]
    batched = ours.batched and all(spec.shape[:1] == (ANY,) for spec in inputs)
    # The stricter of both decides how data is cut: a size that one of them fixes is fixed, and so are the most rows.
    specs = [
        TensorSpec(x.name, x.dtype, tuple(max(d, e) for d, e in zip(x.shape, y.shape, strict=True)))
        for x, y in zip(ours.inputs, inputs, strict=True)
    ]
    return specs, batched, min(side.max_rows for side in (ours, theirs) if side.batched) if batched else 1


def _answers(
    name: str, artifact: Artifact, cases: Sequence[Case], inputs: Sequence[TensorSpec], options: Options
) -> list[Arrays]:
    calls = [tuple(case.inputs[spec.name] for spec in inputs) for case in cases]
    found: list[Arrays] = []
    for case, answer in zip(
        cases, run_cases(artifact.path, calls, options.threads, options.device, options.trust_pickle), strict=True
    ):
        if isinstance(answer, str):
            raise ConversionFailed(f"{name} fails on {case.rows} rows of {case.origin} data: {answer}")
        found.append(answer)
    return found


def _evaluated(
    options: Options,
    cases: Sequence[Case],
    ours: Signature,
    columns: Mapping[str, tuple[int, int]],
    expected: Sequence[Arrays],
    got: Sequence[Arrays],
) -> Evaluation | None:
    if options.evaluate is None:
        return None
    at = [k for k, case in enumerate(cases) if case.origin == EVALUATION]
    _, labels = labelled(options.evaluate, [spec.name for spec in ours.inputs])
    before = [tuple(expected[k][i] for i, _ in columns.values()) for k in at]
    after = [tuple(got[k][j] for _, j in columns.values()) for k in at]
    return evaluate(options.metric, options.max_drop, list(columns), labels, before, after)


def _profile(artifact: Artifact) -> Mapping[str, Any]:
    return next(iter(artifact.profile().get("devices", {}).values()), {})
