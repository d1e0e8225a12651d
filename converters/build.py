"""From a source file to verified artifacts: the way through the table, the proof of each target, and its place.

Everything happens in a folder beside the target, which gets its name only when every artifact asked for is proved.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from cluster.artifact import Artifact, hash_files, sha256_of
from cluster.errors import ConversionFailed, InvalidRequest, OperatorError
from converters.apart import Mark, make_apart
from converters.candidate import Candidate, Options, Say
from converters.formats import Format, source_format
from converters.proof.evaluation import check_gate
from converters.proof.proving import Proof, prove, reference_from
from converters.proof.report import Cost, Report
from converters.ranges import parse_ranges
from converters.sealing import cost_of, manifest_of, seal
from converters.table import Route, target_format, way
from converters.tensorrt.recipe import BUILDS, HERE, ON_LOAD


def silent(text: str) -> None:
    """A `Say` for callers who do not want to know."""


def unmarked(mark: Mark) -> None:
    """For callers who need not know what this process would die of."""


def convert(
    source: Path,
    out: Path,
    targets: Sequence[str] = ("onnx",),
    options: Options | None = None,
    say: Say = silent,
) -> tuple[Artifact, ...]:
    """Convert, prove and profile `source`; one artifact per target, in the order asked for.

    Args:
        source: A file or folder that `formats.source_format` knows: PyTorch weights, `.pt2` or TorchScript, `.onnx`,
            `.tflite`, a SavedModel's folder, `.keras`, or a model of scikit-learn, XGBoost or LightGBM.
        out: The artifact's directory for one target; for several, the folder that gets one directory per target,
            named after it. It must not exist, or be empty.
        targets: Names of `table.targets()`.
        options: Data, tolerances and what else the source needs.
        say: Told what happens next.

    Raises:
        InvalidRequest: Something in the arguments cannot be right.
        OperatorError: The target's folder cannot be written.
        ConversionFailed: The model cannot be converted, or its answers are not the source's. Nothing is left at `out`.
    """
    options = options or Options()
    wanted = tuple(dict.fromkeys(target_format(name) for name in targets))
    start = source_format(source)
    _check(options, {target: _way(start, target, options) for target in wanted})
    with work_folder(out) as work:
        _made(source, wanted, work, options, say, tolerant=False)
        return _place(work, out, wanted)


def convert_what_works(
    source: Path, out: Path, targets: Sequence[str], options: Options, say: Say = silent
) -> tuple[dict[str, Artifact], dict[str, str]]:
    """As `convert`, but a target that cannot be made, or is not near enough, does not stop the others.

    Returns:
        Artifacts by target, below `out`; and why each of the other targets failed.

    Raises: as `convert`, where the source itself is at fault.
    """
    wanted = tuple(dict.fromkeys(target_format(name) for name in targets))
    start = source_format(source)
    _check(options, {target: way(start, target, built_here=options.engine == HERE) for target in wanted})
    with work_folder(out) as work:
        failures = _made(source, wanted, work, options, say, tolerant=True)
        made = tuple(target for target in wanted if target.value not in failures)
        work.chmod(0o755)
        work.rename(out)
        return {target.value: Artifact.read(out / target.value) for target in made}, failures


def _way(start: Format, target: Format, options: Options) -> tuple[Route, ...]:
    steps = way(start, target)
    if options.engine == HERE:
        try:
            way(start, target, built_here=True)
        except ConversionFailed as error:
            hint = f"--engine {ON_LOAD} leaves the engine to the machine that serves it"
            raise ConversionFailed(f"{error.message}; {hint}") from None
    return steps


def _check(options: Options, ways: Mapping[Format, Sequence[Route]]) -> None:
    if options.max_rows < 1:
        raise InvalidRequest(f"max_rows: expected at least 1, got {options.max_rows}")
    if not ways:
        raise InvalidRequest("to: expected at least one target, got none")
    if options.engine not in BUILDS:
        raise InvalidRequest(f"engine: expected {' or '.join(BUILDS)}, got {options.engine!r}")
    parse_ranges(options.dynamic)
    check_gate(options)
    needing = [target for target, steps in ways.items() if any(step.calibrates for step in steps)]
    if needing and options.calibrate is None:
        raise InvalidRequest(f"calibrate: {needing[0]} needs calibration data (--calibrate data.npz), got none")


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` while the context lasts, for what gets its name only when all is well."""
    if out.name in ("", ".."):
        raise InvalidRequest(f"out: expected the name of a folder to be made, got {str(out)!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidRequest(f"out: {out} exists already")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise OperatorError(f"out: cannot write to {out.parent} ({error.strerror})") from None
    try:
        with ended_in_order():
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process as Ctrl-C does, with everything tidied up, unless it has another mind."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    plain = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in plain:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in plain:
            signal.signal(number, signal.SIG_DFL)


def _made(
    source: Path, wanted: Sequence[Format], work: Path, options: Options, say: Say, tolerant: bool
) -> dict[str, str]:
    return (make_apart if options.apart else make)(source, wanted, work, options, say, tolerant)


def make(
    source: Path,
    targets: Sequence[Format],
    work: Path,
    options: Options,
    say: Say,
    tolerant: bool,
    mark: Callable[[Mark], None] = unmarked,
) -> dict[str, str]:
    """Every target proved and sealed in a folder below `work` that is called after it.

    Args:
        tolerant: A target that fails does not stop the others.
        mark: Told what is begun, so that it can be named if this process dies of it.

    Returns:
        Why targets failed, where that is tolerated.

    Raises: as `convert`.
    """
    start = source_format(source)
    failures: dict[str, str] | None = {} if tolerant else None
    origin = Candidate(
        path=source,
        precision="fp32",
        source={"kind": start.value, "file": source.name, "sha256": sha256_of_tree(source)},
    )
    candidates: dict[Route, Candidate] = {}
    proofs: dict[Format, Proof] = {}
    ends: dict[Format, Candidate] = {}
    for target in targets:
        with _noted(target, failures, bool(candidates)):
            candidate = origin
            for step in way(start, target):
                if step not in candidates:
                    mark(Mark(target.value, f"{step.source.value} to {step.target.value}", bool(candidates)))
                    candidates[step] = _take(step, candidate, work, options, say)
                candidate = candidates[step]
            ends[target] = candidate
    for target, candidate in ends.items():
        mark(Mark(target.value, "proving", True))
        with _noted(target, failures, True):
            proofs[target] = prove(candidate, options, _prefixed(say, target))
    for target in proofs:
        _seal(target, proofs, origin, options)
    return failures or {}


@contextmanager
def _noted(target: Format, failures: dict[str, str] | None, begun: bool) -> Iterator[None]:
    """Write a failure down instead of raising it; a source that cannot even be read is raised all the same."""
    try:
        yield
    except ConversionFailed as error:
        if failures is None or not begun:
            raise
        failures[target.value] = error.message


def _take(step: Route, candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    if candidate.cases and not candidate.reference:
        # What is made from a file that came without a source is compared with that file's own answers.
        reference = reference_from(candidate, options)
        candidate = replace(candidate, reference=reference, reference_kind=candidate.format)
    folder = work / step.target.value
    folder.mkdir(exist_ok=True)
    module, name = step.convert.split(":")
    run: Callable[[Candidate, Path, Options, Say], Candidate] = getattr(import_module(module), name)
    made = run(candidate, folder, options, _prefixed(say, step.target))
    ranges = {f"{r.name}:{r.axis}": r.to_json() for r in parse_ranges(options.dynamic)}
    extra = {**made.extra, "target": step.target.value, **({"ranges": ranges} if ranges else {})}
    return replace(made, folder=folder, extra=extra)


def _seal(target: Format, proofs: Mapping[Format, Proof], origin: Candidate, options: Options) -> None:
    """Close one artifact, its report showing what it costs beside its siblings and its source."""
    proof = proofs[target]
    costs = [cost_of(name.value, p.candidate.root, p.profile) for name, p in proofs.items()]
    costs.sort(key=lambda cost: cost.name != target.value)
    costs.append(Cost("source", _bytes_of(origin.path), {}))
    manifest = manifest_of(proof.candidate, proof.signature, options)
    inputs = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in proof.signature.inputs)
    rows = f"up to {proof.signature.max_rows} rows a call" if proof.signature.batched else "one request a call"
    kind = proof.candidate.reference_kind
    report = Report(
        title=f"{origin.path.name} as {target.value}",
        subtitle=f"{inputs} · {rows}",
        against="its own answers" if kind == "self" else f"the {kind} source",
        parity=proof.parity,
        points=proof.points,
        costs=tuple(costs),
        facts=(
            ("source", f"{origin.path.name}, SHA-256 {proof.candidate.source['sha256']}"),
            ("made with", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
            ("made at", manifest.created),
        ),
    )
    seal(proof.candidate, proof.signature, options, report, proof.notes)


def _bytes_of(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    beside = (file for file in path.parent.iterdir() if file.name.startswith(path.name))  # its weights, say
    return sum(file.stat().st_size for file in beside if file.is_file())


def sha256_of_tree(path: Path) -> str:
    """SHA-256 in hex of a file, or of the names and SHA-256s of a folder's files."""
    if path.is_file():
        return sha256_of(path)
    return sha256(json.dumps(hash_files(path), sort_keys=True).encode()).hexdigest()


def _prefixed(say: Say, target: Format) -> Say:
    return lambda text: say(f"{target.value}: {text}")


def _place(work: Path, out: Path, wanted: tuple[Format, ...]) -> tuple[Artifact, ...]:
    if out.is_dir():
        out.rmdir()
    if len(wanted) == 1:
        (work / wanted[0].value).rename(out)
        return (Artifact.read(out),)
    for folder in work.iterdir():  # steps on the way to a target that were not asked for themselves
        if folder.name not in {target.value for target in wanted}:
            shutil.rmtree(folder)
    work.chmod(0o755)
    work.rename(out)
    return tuple(Artifact.read(out / target.value) for target in wanted)
