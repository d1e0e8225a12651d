"""What an artifact costs on this machine: seconds per call by rows, loading time, memory.

Loading counts from the import of the runtime to a loaded model, and `first_call_s` is the first answer after it: a
replica is ready after both. Memory is what the process has beyond an interpreter with numpy.

Other work on a machine only ever adds time, so each point is the lower quartile of its runs, and no point is above a
larger batch's: whoever needs n rows could run the larger one.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cluster.artifact import SAMPLE, Artifact
from cluster.costs import CostCurve
from converters.runtime import Arrays, Runtime, open_runtime

LEAST_RUNS, MOST_RUNS = 3, 1000
MOST_S = 0.3  # per point


def counts(max_rows: int) -> tuple[int, ...]:
    """Rows to measure: the powers of two up to `max_rows`, and `max_rows`."""
    powers = [1 << i for i in range(max_rows.bit_length()) if 1 << i <= max_rows]
    return tuple(sorted({*powers, max_rows}))


def settle(points: Mapping[int, float]) -> dict[int, float]:
    """The points with each lowered to the cheapest larger batch."""
    settled: dict[int, float] = {}
    least = float("inf")
    for rows, seconds in sorted(points.items(), reverse=True):
        least = min(least, seconds)
        settled[rows] = least
    return dict(sorted(settled.items()))


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two measurements of one artifact as one: of each figure the smaller, since other work only ever adds."""
    points: dict[int, float] = {}
    for found in (first, second):
        for rows, seconds in found["seconds_by_rows"].items():
            points[int(rows)] = min(float(seconds), points.get(int(rows), float("inf")))
    points = settle(points)
    curve = CostCurve.of(points)
    return {
        **first,
        "seconds_by_rows": {str(rows): seconds for rows, seconds in points.items()},
        "best_rows": curve.best_rows(max(points)),
        "load_s": min(first["load_s"], second["load_s"]),
        "first_call_s": min(first["first_call_s"], second["first_call_s"]),
    }


def measure(path: Path, threads: int, budget_s: float, device: str = "cpu") -> dict[str, Any]:
    """An entry of `profile.json`'s `devices`. To be called in a fresh process: it measures its memory.

    Returns:
        `seconds_by_rows`, `best_rows` (beyond which a batch no longer pays), `load_s`, `first_call_s`, `loaded_bytes`
        (after loading), `rss_bytes` (after the largest batch), `threads`, `cpu_model`.
    """
    artifact = Artifact.read(path)
    signature = artifact.manifest.signature
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    started_s = time.perf_counter()
    runtime = open_runtime(artifact, threads=threads, accelerator=device)
    load_s = time.perf_counter() - started_s
    loaded_bytes = process.memory_info().rss - before_bytes
    with np.load(path / SAMPLE, allow_pickle=False) as sample:
        example = tuple(sample[spec.name] for spec in signature.inputs)
    started_s = time.perf_counter()
    runtime.run(_resized(example, 1, signature.batched))
    first_call_s = time.perf_counter() - started_s
    points = settle(_curve(runtime, example, counts(signature.max_rows), signature.batched, budget_s))
    curve = CostCurve.of(points)
    return {
        "seconds_by_rows": {str(rows): seconds for rows, seconds in points.items()},
        "best_rows": curve.best_rows(signature.max_rows),
        "load_s": load_s,
        "first_call_s": first_call_s,
        "loaded_bytes": max(0, loaded_bytes),
        "rss_bytes": max(0, process.memory_info().rss - before_bytes),
        "threads": threads,
        "cpu_model": cpu_model(),
    }


def _curve(
    runtime: Runtime, example: Arrays, rows_counts: tuple[int, ...], batched: bool, budget_s: float
) -> dict[int, float]:
    points: dict[int, float] = {}
    started_s = time.perf_counter()
    for i, rows in enumerate(rows_counts):
        left_s = budget_s - (time.perf_counter() - started_s)
        per_row_s = points[rows_counts[i - 1]] / rows_counts[i - 1] if points else 0.0
        if len(points) >= 2 and per_row_s * rows * (LEAST_RUNS + 1) > left_s:
            break  # the curve goes on with its last slope
        inputs = _resized(example, rows, batched)
        runtime.run(inputs)
        points[rows] = _seconds(runtime, inputs, min(MOST_S, left_s / (len(rows_counts) - i)))
    return points


def _resized(example: Arrays, rows: int, batched: bool) -> Arrays:
    return tuple(np.resize(array, (rows, *array.shape[1:])) for array in example) if batched else example


def _seconds(runtime: Runtime, inputs: Arrays, share_s: float) -> float:
    taken: list[float] = []
    began_s = time.perf_counter()
    while len(taken) < LEAST_RUNS or (len(taken) < MOST_RUNS and time.perf_counter() - began_s < share_s):
        started_s = time.perf_counter()
        runtime.run(inputs)
        taken.append(time.perf_counter() - started_s)
    return float(np.quantile(taken, 0.25))


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
