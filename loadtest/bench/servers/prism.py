"""A whole Prism in a home of its own, driven by its commands: store, Ray, controller, one gateway, one replica.

python -m loadtest.bench.servers.prism --artifact DIR --model NAME --port 8000 [--autoscale 4]
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

import click

_FOREIGN = ("REDIS_URL", "PRISM_HOME")  # would make it another Prism's


def command(home: Path, *arguments: str, fine: Collection[int] = (0,)) -> int:
    """The exit code of `prism ARGUMENTS --home HOME`. Raises: SystemExit with what it said, if it is not `fine`."""
    environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    done = subprocess.run(
        [sys.executable, "-m", "cluster", *arguments, "--home", str(home)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout, end="", flush=True)
    if done.returncode not in fine:
        raise SystemExit(f"prism {arguments[0]} ended with {done.returncode}")
    return done.returncode


@click.command()
@click.option("--artifact", required=True, help="Folder that `prism convert` wrote.")
@click.option("--model", required=True, help="Name to serve it under.")
@click.option("--port", type=int, required=True, help="On 127.0.0.1.")
@click.option("--max-batch-rows", default=16, show_default=True, help="Most rows of one batch.")
@click.option("--autoscale", default=0, help="Most replicas, of a tenth of a CPU to Ray; 0: one replica, one CPU.")
@click.option("--idle-after", type=float, help="Sleep after so many seconds without a request.  [default: never]")
def main(artifact: str, model: str, port: int, max_batch_rows: int, autoscale: int, idle_after: float | None) -> None:
    """Serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder = Path(tempfile.mkdtemp(prefix="prism-bench-"))
    try:
        command(folder / "home", "up", "--http-port", str(port), "--grpc-port", "0")
        command(folder / "home", "publish", model, artifact)
        cpus = "0.1" if autoscale else "1"
        least = ("--min", "1") if idle_after is None else ("--min", "0", "--idle-after", f"{idle_after:g}")
        limits = (*least, "--max", str(autoscale or 1), "--cpus", cpus, "--batch-rows", str(max_batch_rows))
        command(folder / "home", "deploy", f"{model}:1", *limits)
        print("up", flush=True)
        signal.pause()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        command(folder / "home", "down")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
