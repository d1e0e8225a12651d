"""The form and the settings in which a model serves an objective with the least hardware.

Converts to every candidate that makes sense, proves and measures each, simulates every configuration
(`converters.objective`), and keeps the best one as an artifact that says how to serve it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.artifact import PROFILE, Artifact, hash_files, write_manifest
from cluster.costs import CostCurve
from cluster.errors import ConversionFailed
from cluster.latency import LatencyBound
from converters import isolated
from converters.build import convert_what_works, work_folder
from converters.candidate import Options, Say
from converters.choosing import Choice, choose_targets
from converters.formats import source_format
from converters.layers import layers_of
from converters.objective import (
    Configuration,
    Result,
    batch_sizes,
    choose,
    evaluate,
    reasons,
)
from converters.proof.profile import merge
from converters.proof.proving import profiled
from converters.sealing import model_bytes, write_json

DECISION = "optimize.json"
MAX_THREADS = 4
ROUNDS = 3
LEAST_OBJECTIVE_S = 0.001  # of deploy settings


@dataclass(frozen=True, slots=True)
class Optimized:
    """What was decided: the artifact that was kept, how to serve it, and what became of everything else.

    `failed` says why forms that were tried could not be made or measured, `left_out` why others were not tried.
    """

    artifact: Artifact
    best: Result
    results: tuple[Result, ...]
    reasons: Mapping[Configuration, str]
    failed: Mapping[str, str]
    left_out: Mapping[str, str]
    quality: Mapping[str, Mapping[str, Any]]

    @property
    def serving(self) -> Mapping[str, Any]:
        """Settings of `prism deploy`."""
        return dict(self.artifact.manifest.extra["serving"])


def serving_of(result: Result, objective: LatencyBound, device: str) -> dict[str, Any]:
    """Deploy settings for a configuration that serves `objective`."""
    found = result.configuration
    return {
        "num_cpus": found.threads,
        "max_batch_rows": found.max_rows,
        "max_wait_s": 0,
        "objective_s": max(LEAST_OBJECTIVE_S, objective.limit_s),
        **({"accelerator": "gpu"} if device == "gpu" else {}),
    }


def optimize(
    source: Path,
    out: Path,
    objective: LatencyBound,
    options: Options,
    say: Say,
    targets: Sequence[str] = (),
    threads: Sequence[int] = (),
) -> Optimized:
    """Keep the best configuration of `source` as an artifact at `out`.

    Args:
        targets: What to try; without any, what `choosing.choose_targets` takes for worth it.
        threads: Threads a call may have; without any, 1 and its doubles up to this machine's cores (at most 4).

    Raises:
        InvalidRequest: Something in the arguments cannot be right.
        ConversionFailed: Nothing could be converted, or no configuration holds the objective. Nothing is left at `out`.
    """
    counts = tuple(threads) or _thread_counts()
    choice = Choice(tuple(targets), {}) if targets else _choice(source, options)
    if not choice.tried:
        raise ConversionFailed(f"nothing is worth a try: {'; '.join(f'{k}: {v}' for k, v in choice.left_out.items())}")
    with work_folder(out) as work:
        options = replace(options, threads=counts[0])
        made, failed = convert_what_works(source, work / "made", choice.tried, options, say)
        if not made:
            raise ConversionFailed(f"nothing could be converted: {'; '.join(f'{k}: {v}' for k, v in failed.items())}")
        profiles, unmeasured = _profiles(made, counts, options, say)
        failed |= unmeasured
        say("simulating")
        results = simulate(made, profiles, objective, options.device)
        best = choose(results)
        why = reasons(results, best, objective)
        if best is None:
            lost = [f"{c.target}, {c.threads} threads: {text}" for c, text in _briefly(results, why)]
            texts = "; ".join((*lost, *(f"{name}: {text}" for name, text in failed.items())))
            raise ConversionFailed(f"no configuration holds {objective}: {texts}")
        quality = {name: _quality(artifact) for name, artifact in made.items() if name in profiles}
        decision = {
            "objective": str(objective),
            "serving": serving_of(best, objective, options.device),
            "best": best.to_json(),
            "tried": [{**r.to_json(), "verdict": why[r.configuration]} for r in results],
            "failed": dict(failed),
            "left_out": dict(choice.left_out),
            "quality": quality,
        }
        chosen = made[best.configuration.target]
        artifact = _keep(
            chosen, out, profiles[best.configuration.target][best.configuration.threads], decision, options
        )
        return Optimized(artifact, best, results, why, failed, choice.left_out, quality)


def _choice(source: Path, options: Options) -> Choice:
    start = source_format(source)
    found = isolated.layers(source, start.value) if options.apart else layers_of(source, start)
    return choose_targets(start, found, options)


def simulate(
    made: Mapping[str, Artifact],
    profiles: Mapping[str, Mapping[int, Mapping[str, Any]]],
    objective: LatencyBound,
    device: str,
) -> tuple[Result, ...]:
    """Every configuration's result: targets that were measured, threads and measured batch sizes."""
    found = []
    for target, artifact in made.items():
        for count, profile in profiles.get(target, {}).items():
            curve = CostCurve.of({int(rows): float(s) for rows, s in profile["seconds_by_rows"].items()})
            for rows in batch_sizes(curve, artifact.manifest.signature.max_rows):
                found.append(evaluate(Configuration(target, count, rows), curve, objective))
    return tuple(found)


def best_by_threads(results: Sequence[Result]) -> tuple[Result, ...]:
    """The batch size to take for each target and thread count, best first."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.configuration.target, result.configuration.threads), []).append(result)
    found = [choose(group) or group[0] for group in groups.values()]
    return tuple(sorted(found, key=lambda r: -r.rate_per_thread))


def _briefly(results: Sequence[Result], why: Mapping[Configuration, str]) -> list[tuple[Configuration, str]]:
    return [(r.configuration, why[r.configuration]) for r in best_by_threads(results)]


def _thread_counts() -> tuple[int, ...]:
    cores = min(MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return tuple(1 << i for i in range(cores.bit_length()) if 1 << i <= cores)


def _profiles(
    made: Mapping[str, Artifact], counts: Sequence[int], options: Options, say: Say
) -> tuple[dict[str, dict[int, dict[str, Any]]], dict[str, str]]:
    """What each target costs with each number of threads, and why others could not be measured.

    Measured in rounds, so that other work on the machine that comes and goes does not decide between targets.
    """
    measured: dict[str, dict[int, dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for name, artifact in made.items():
        known = artifact.profile()["devices"]
        if known:
            measured[name] = {counts[0]: next(iter(known.values()))}
        else:
            failed[name] = "it cannot be run here, so it was not measured"
    for i in range(1, ROUNDS):
        for name, found in list(measured.items()):
            say(f"{name}: measuring again, round {i + 1} of {ROUNDS}")
            try:
                for count in counts:
                    profile = profiled(made[name].path, replace(options, threads=count))
                    found[count] = merge(found[count], profile) if count in found else profile
            except ConversionFailed as error:
                failed[name] = error.message
                del measured[name]
    return measured, failed


def _quality(artifact: Artifact) -> dict[str, Any]:
    parity = artifact.parity()
    noise = [o["sqnr_db"] for o in parity["outputs"] if o["sqnr_db"] is not None]
    evaluation = parity.get("evaluation") or {}
    return {
        "sqnr_db": min(noise, default=None),
        "metric": evaluation.get("converted"),
        "drop": evaluation.get("drop"),
        "size_bytes": model_bytes(artifact.path),
    }


def _keep(
    artifact: Artifact, out: Path, profile: Mapping[str, Any], decision: Mapping[str, Any], options: Options
) -> Artifact:
    """The artifact at `out`, with its decision, and the measurements of the threads it is to be served with."""
    if out.is_dir():
        out.rmdir()
    artifact.path.rename(out)
    write_json(out / DECISION, json.loads(json.dumps(decision)))
    write_json(out / PROFILE, {"devices": {options.device: dict(profile)}})
    extra = {**artifact.manifest.extra, "serving": decision["serving"], "objective": decision["objective"]}
    kept = write_manifest(out, replace(artifact.manifest, extra=extra, files=hash_files(out)))
    kept.verify()
    return kept
