"""The model without a server: what one thread of this machine can do at most.

python -m loadtest.bench.floor MODEL.onnx --batches 1,4,16
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
import numpy as np

from loadtest.bench.work import INPUT, OUTPUT, open_session


@dataclass(frozen=True, slots=True)
class FloorPoint:
    """One batch size, called again and again on one thread. Milliseconds per row."""

    work: str
    batch_rows: int
    rows_per_s: float
    row_ms: float
    row_cpu_ms: float


def measure(work: str, model_file: Path, batch_rows: int, seconds: float) -> FloorPoint:
    """At least three calls, for about `seconds`."""
    session = open_session(model_file)
    shape = session.get_inputs()[0].shape[1:]
    batch = np.random.default_rng(0).standard_normal((batch_rows, *shape), dtype=np.float32)
    for _ in range(3):
        session.run([OUTPUT], {INPUT: batch})
    calls, cpu_s, started_s = 0, time.process_time(), time.perf_counter()
    while calls < 3 or time.perf_counter() - started_s < seconds:
        session.run([OUTPUT], {INPUT: batch})
        calls += 1
    took_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    rows = calls * batch_rows
    return FloorPoint(work, batch_rows, rows / took_s, 1e3 * took_s / rows, 1e3 * cpu_s / rows)


@click.command()
@click.argument("model_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--work", default="", help="Name to print.")
@click.option("--batches", default="1,4,16,64", show_default=True, help="Rows per call.")
@click.option("-d", "--seconds", default=1.0, show_default=True, help="Per batch size.")
def main(model_file: Path, work: str, batches: str, seconds: float) -> None:
    """Measure a model in this process and print one JSON line per batch size."""
    for rows in batches.split(","):
        point = measure(work, model_file, int(rows), seconds)
        sys.stdout.write(msgspec.json.encode(point).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
