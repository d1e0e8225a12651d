"""Whether a PyTorch artifact is served compiled: by measurement, and with the reason kept in its manifest.

    "compiled": {"cpu": {"asked": "auto", "kept": true, "why": "...", "compile_s": ..., "eager": {"1": ...},
                         "quick": {"1": ...}, "eager_load_s": ..., "quick_load_s": ...}}

What is compiled is never part of an artifact: it is machine code, and artifacts are data. It is made again where the
artifact is loaded, so the reason says what that costs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.artifact import MANIFEST, SAMPLE, Artifact, write_manifest
from cluster.errors import ConversionFailed, InvalidRequest
from cluster.tensors import ANY, Signature
from converters.candidate import Candidate, Options, Say
from converters.isolated import run_task
from converters.proof.profile import counts
from converters.runtime import Arrays, Runtime, Specs, open_runtime
from converters.sealing import manifest_of, write_sample
from converters.torch.runtime import AUTO, COMPILED, OFF, ON

MODES = (OFF, AUTO, ON)

# Measurements of the same thing differ by as much on a machine that others use.
GAIN = 1.10
LOSS = 1.05

# torch looks at the first calls of a script before it settles on code for them.
WARM_RUNS, LEAST_RUNS, MOST_RUNS = 3, 5, 300


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether compiled code is kept, and why."""

    kept: bool
    why: str


def choose(asked: str, eager: Mapping[int, float], quick: Mapping[int, float]) -> Choice:
    """What to serve, from seconds per call by rows without and with compiled code.

    It is kept if it is faster by `GAIN` over all, and nowhere slower than by `LOSS`.
    """
    shared = sorted(set(eager) & set(quick))
    if not shared:
        return Choice(asked == ON, "nothing was measured with both")
    ratios = {rows: eager[rows] / quick[rows] for rows in shared}
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    worst = min(shared, key=lambda rows: ratios[rows])
    figures = f"{mean:.2f} times as fast over {shared[0]} to {shared[-1]} rows, {ratios[worst]:.2f} times at {worst}"
    if mean >= GAIN and ratios[worst] * LOSS >= 1:
        return Choice(True, figures)
    return Choice(asked == ON, f"{figures}: it does not pay" + (", and was asked for" if asked == ON else ""))


def check_mode(options: Options) -> None:
    """Raises: InvalidRequest."""
    if options.compiled not in MODES:
        raise InvalidRequest(f"compiled: expected one of {', '.join(MODES)}, got {options.compiled!r}")


def with_choice(
    candidate: Candidate,
    specs: tuple[Specs, Specs],
    options: Options,
    say: Say,
    compile_first: Callable[[], float],
) -> Candidate:
    """The candidate, noting whether it is to be served compiled.

    Args:
        specs: Its inputs and outputs.
        compile_first: Compiles it, so that loading it afterwards is measured without that; seconds it took. Raises
            ConversionFailed where it cannot be compiled.

    Raises: ConversionFailed if compiled code was asked for and there is none, or if the model cannot be measured.
    """
    if options.compiled == OFF:
        return candidate
    device = "gpu" if options.device != "cpu" and torch.cuda.is_available() else "cpu"

    def noted(entry: Mapping[str, Any], *notes: str) -> Candidate:
        entry = {"asked": options.compiled, **entry}
        return replace(
            candidate, extra={**candidate.extra, COMPILED: {device: entry}}, notes=(*candidate.notes, *notes)
        )

    say("compiling")
    try:
        compile_s = compile_first()
    except ConversionFailed as error:
        if options.compiled == ON:
            raise
        return noted({"kept": False, "why": error.message}, f"not compiled: {error.message}")
    say("measuring it with and without compiled code")
    manifests = []
    for kept in (False, True):
        _write_artifact(noted({"kept": kept}), specs, options)
        manifests.append((candidate.root / MANIFEST).read_text())
    found = run_task(
        {
            "task": "choose",
            "artifact": str(candidate.root),
            "manifests": manifests,
            "threads": options.threads,
            "device": options.device,
            "budget_s": options.profile_s,
        },
        "measuring",
    )
    eager, quick = ({int(rows): s for rows, s in found[name].items()} for name in ("eager", "quick"))
    choice = choose(options.compiled, eager, quick)
    costs = f"loading takes {found['quick_load_s']:.2f} s instead of {found['eager_load_s']:.2f} s after torch's import"
    if compile_s:
        costs += f", compiling {compile_s:.0f} s, once on every machine"
    entry = {"kept": choice.kept, "why": choice.why, "compile_s": compile_s, **found}
    return noted(entry, f"{'served' if choice.kept else 'not served'} compiled: {choice.why}; {costs}")


def measure_both(request: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds per call by rows of one artifact under two manifests, without and with compiled code, in turn.

    The task "choose" of `converters.worker`. Other work on the machine slows both alike, so the two are compared within
    moments; of each, the lower quartile is given.
    """
    folder = Path(request["artifact"])
    runtimes: list[Runtime] = []
    loads: list[float] = []
    for manifest in [request["manifests"][0], *request["manifests"]]:  # the first also loads parts of torch
        (folder / MANIFEST).write_text(manifest)
        artifact = Artifact.read(folder)
        begun_s = time.perf_counter()
        runtimes.append(open_runtime(artifact, request["threads"], request["device"]))
        loads.append(time.perf_counter() - begun_s)
    del runtimes[0]
    signature = artifact.manifest.signature
    with np.load(folder / SAMPLE, allow_pickle=False) as sample:
        example = [sample[spec.name] for spec in signature.inputs]
    sizes = counts(signature.max_rows) if signature.batched else (1,)
    share_s = request["budget_s"] / len(sizes)
    ends_s = time.perf_counter() + 3 * request["budget_s"]  # first calls take longer, and are not counted
    eager, quick = {}, {}
    for rows in sizes:
        inputs = tuple(np.resize(a, (rows, *a.shape[1:])) for a in example) if signature.batched else tuple(example)
        eager[rows], quick[rows] = _in_turn(runtimes, inputs, share_s)
        if time.perf_counter() > ends_s:
            break
    return {"eager": eager, "quick": quick, "eager_load_s": loads[1], "quick_load_s": loads[2]}


def _in_turn(runtimes: Sequence[Runtime], inputs: Arrays, share_s: float) -> list[float]:
    taken: list[list[float]] = [[] for _ in runtimes]
    for _ in range(WARM_RUNS):
        for runtime in runtimes:
            runtime.run(inputs)
    ends_s = time.perf_counter() + share_s
    while len(taken[0]) < LEAST_RUNS or (len(taken[0]) < MOST_RUNS and time.perf_counter() < ends_s):
        for runtime, seconds in zip(runtimes, taken, strict=True):
            begun_s = time.perf_counter()
            runtime.run(inputs)
            seconds.append(time.perf_counter() - begun_s)
    return [float(np.quantile(seconds, 0.25)) for seconds in taken]


def _write_artifact(candidate: Candidate, specs: tuple[Specs, Specs], options: Options) -> None:
    inputs, outputs = specs
    free = options.max_rows > 1 and all(s.shape and s.shape[0] == ANY for side in specs for s in side)
    signature = Signature(inputs, outputs, free, min(options.max_rows, candidate.max_rows) if free else 1)
    write_sample(candidate.root, candidate.cases, inputs)
    write_manifest(candidate.root, manifest_of(candidate, signature, options))
