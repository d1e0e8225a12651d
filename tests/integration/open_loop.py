"""Open-loop load on a node of a real Prism while something happens to it: `prism loadtest`, as an operator runs it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from loadtest.measure import Counts
from loadtest.result import LoadResult
from running import PRISM, Prism


class OpenLoop:
    """`rate` requests a second to the gateway of `prism`, whether it answers or not; use as a context manager.

    It has begun when the context is entered. `counts` are there once it has ended.
    """

    def __init__(self, prism: Prism, out: Path, model: str = "m", rate: float = 30.0) -> None:
        self._prism, self._out, self._model = prism, out, model
        load = ("--scenario", "smoke", "--rate", str(rate), "--duration", "600")
        self._command = [PRISM, "loadtest", *load, "--model", model, "--home", str(prism.home), "--out", str(out)]
        self.counts: Counts

    def __enter__(self) -> OpenLoop:
        before = self._answered()
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(self._out.parent)},
        )
        try:
            self._prism.until(lambda: self._process.poll() is not None or self._answered() > before + 60, 60)
        except AssertionError:
            self._process.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        printed, _ = self._process.communicate(timeout=60)
        assert (self._out / "result.json").exists(), printed
        self.counts = LoadResult.read(self._out / "result.json").total.counts

    def _answered(self) -> float:
        """Requests that the node's gateways have answered with 200."""
        _, text = self._prism.get("/metrics")
        wanted = ("prism_requests_total{", f'model="{self._model}"', 'status="200"')
        lines = [line for line in text.decode().splitlines() if all(word in line for word in wanted)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)
