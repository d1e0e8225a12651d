"""What an artifact costs on this machine: seconds per call by rows, loading time, memory.

Loading counts from the import of the runtime to a loaded model, and `first_call_s` is the first answer after it: a
replica is ready after both. Memory is what the process has beyond an interpreter with numpy; on a GPU also what is in
use there beyond what was before, the context of CUDA and whatever others did meanwhile included.

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
from converters.cuda_device import used_bytes
from converters.runtime import Arrays, Runtime, open_runtime

LEAST_RUNS, MOST_RUNS = 3, 1000
MOST_S = 0.3  # per point
BRIEF_RUNS, BRIEF_S = 8, 1.0  # per point and in all, where a replica waits for them


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


def costs_here(
    runtime: Runtime, artifact: Artifact, example: Arrays, device: str, threads: int, budget_s: float = BRIEF_S
) -> CostCurve:
    """Seconds per batch on this machine: the profile's where it was measured on one like it, else measured now.

    Args:
        runtime: Loaded and warm.
        example: The artifact's sample, in the signature's order.
        device: "cpu" or "gpu", as the runtime uses it.
        threads: As the runtime was opened with.
        budget_s: About how long measuring may take.
    """
    published = artifact.cost_curve(device)
    profile = artifact.profile().get("devices", {}).get(device, {})
    if published.rows and measured_alike(profile, device, threads):
        return published
    signature = artifact.manifest.signature
    sizes = counts(signature.max_rows) if signature.batched else (1,)
    return published.corrected(_brief_curve(runtime, example, sizes, signature.batched, budget_s), sizes[-1])


def _brief_curve(
    runtime: Runtime, example: Arrays, sizes: tuple[int, ...], batched: bool, budget_s: float
) -> dict[int, float]:
    """The least of a few runs of each size, the first left out. Larger sizes that would not fit the budget are left
    out, and so are those that fail; the first is always run, and only once if that takes all of it."""
    ends_s = time.perf_counter() + budget_s
    points: dict[int, float] = {}
    for i, rows in enumerate(sizes):
        left_s = ends_s - time.perf_counter()
        if points and LEAST_RUNS * rows * points[sizes[i - 1]] / sizes[i - 1] > left_s:
            break
        inputs = _resized(example, rows, batched)
        try:
            least_s = _timed(runtime, inputs)
            if least_s < left_s:
                least_s = _least(runtime, inputs, left_s / (len(sizes) - i))
        except Exception:  # the device's memory is too small, say: the smaller ones were answered
            if not points:
                raise
            break
        points[rows] = least_s
    return settle(points)


def _least(runtime: Runtime, inputs: Arrays, share_s: float) -> float:
    began_s = time.perf_counter()
    least_s = _timed(runtime, inputs)
    for _ in range(BRIEF_RUNS - 1):
        if time.perf_counter() - began_s >= share_s:
            break
        least_s = min(least_s, _timed(runtime, inputs))
    return least_s


def measure(path: Path, threads: int, budget_s: float, device: str = "cpu") -> dict[str, Any]:
    """An entry of `profile.json`'s `devices`. To be called in a fresh process: it measures its memory.

    Returns:
        `seconds_by_rows`, `best_rows` (beyond which a batch no longer pays), `load_s`, `first_call_s`, `loaded_bytes`
        (after loading), `rss_bytes` (after the largest batch), on a GPU whose driver tells `gpu_bytes` (then too), and
        what `machine` says.
    """
    artifact = Artifact.read(path)
    signature = artifact.manifest.signature
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    gpu_before = used_bytes() if device == "gpu" else None
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
    gpu_after = used_bytes() if device == "gpu" else None
    on_gpu = {} if gpu_before is None or gpu_after is None else {"gpu_bytes": max(0, gpu_after - gpu_before)}
    return {
        "seconds_by_rows": {str(rows): seconds for rows, seconds in points.items()},
        "best_rows": curve.best_rows(signature.max_rows),
        "load_s": load_s,
        "first_call_s": first_call_s,
        "loaded_bytes": max(0, loaded_bytes),
        "rss_bytes": max(0, process.memory_info().rss - before_bytes),
        **on_gpu,
        **machine(device, threads),
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
        taken.append(_timed(runtime, inputs))
    return float(np.quantile(taken, 0.25))


def _timed(runtime: Runtime, inputs: Arrays) -> float:
    started_s = time.perf_counter()
    runtime.run(inputs)
    return time.perf_counter() - started_s


def machine(device: str, threads: int) -> dict[str, Any]:
    """What a measurement on `device` depends on here: `threads` and `cpu_model`, on a GPU `gpu_model` too."""
    gpu = {"gpu_model": gpu_model()} if device == "gpu" else {}
    return {"threads": threads, "cpu_model": cpu_model(), **gpu}


def measured_alike(profile: Mapping[str, Any], device: str, threads: int) -> bool:
    """Whether `profile`, an entry of `profile.json`'s `devices`, holds on `device` here with so many threads.

    A GPU of which the driver tells no name is like no other.
    """
    here = machine(device, threads)
    decisive = ("gpu_model",) if device == "gpu" else ("cpu_model", "threads")
    return all(here[name] and profile.get(name) == here[name] for name in decisive)


def gpu_model(drivers: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """The first GPU's name as NVIDIA's driver tells it; "" if there is none or it does not tell."""
    for info in sorted(drivers.glob("*/information")):
        for line in info.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return ""


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
