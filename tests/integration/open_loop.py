"""Open-loop load on a node of a real Prism while something happens to it: `prism loadtest`, as an operator runs it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import yaml

from loadtest.result import LoadResult
from loadtest.samples import COLUMNS, Outcome, Samples
from running import PRISM, Prism

PATIENCE_S = 5.0  # what was due so shortly before the end, and is open then, was cut off by the end
TOGETHER_S = 2.0  # connections that one process held break within this time, as their clients see it
DROPPED_SHARE = 0.02  # of what was offered
ANSWERED_FIRST = 20


class OpenLoop:
    """`rate` requests a second to the gateway of `prism`, whether it answers or not; use as a context manager.

    It has begun when the context is entered, if nobody else asks this gateway for the model meanwhile. Once it has
    ended, `result` is what the run says of itself, and `samples` are all its requests. A server that stalls is seen as
    such: as many requests may be open as are due in two minutes, and each is waited for as long. The one reason that is
    left to drop an arrival is that the generator was late by seconds.

    Args:
        p99: What the run has to keep, besides sending all but 2 % of what is offered.
    """

    def __init__(self, prism: Prism, out: Path, model: str = "m", rate: float = 30.0, p99: str = "10s") -> None:
        self._prism, self._out, self._model = prism, out, model
        self._scenario = {
            "rate": rate,
            "warmup_s": 0,
            "phases": [{"name": "steady", "pattern": "poisson", "duration_s": 600}],
            "targets": [{"model": model}],
            "generator": {"max_in_flight": int(rate * 120), "timeout_s": 120},
            "objective": [f"p99<{p99}", f"errors<={DROPPED_SHARE:.0%}"],
        }
        self.result: LoadResult
        self.samples: Samples

    def __enter__(self) -> OpenLoop:
        self._out.mkdir(parents=True)
        scenario = self._out / "steady.yaml"
        scenario.write_text(yaml.safe_dump(self._scenario))
        before = self._answered()
        self._process = subprocess.Popen(
            [PRISM, "loadtest", "--scenario", scenario, "--home", self._prism.home, "--out", self._out],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(self._out.parent)},
        )
        self._stopped = False
        try:
            self._prism.until(
                lambda: self._process.poll() is not None or self._answered() > before + ANSWERED_FIRST, 60
            )
        except AssertionError:
            self._process.kill()
            raise
        return self

    def stop(self) -> None:
        """Offer nothing more; the report is written meanwhile."""
        if not self._stopped:
            self._stopped = True
            self._process.send_signal(signal.SIGINT)

    def __exit__(self, *_: object) -> None:
        self.stop()
        printed, _ = self._process.communicate(timeout=60)
        assert (self._out / "result.json").exists(), printed
        self.result = LoadResult.read(self._out / "result.json")
        assert self._process.returncode == self.result.verdict.exit_code, printed
        with np.load(self._out / "samples.npz", allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in COLUMNS}
            self.samples = Samples(**columns, versions=tuple(arrays["versions"].tolist()))

    @property
    def failed(self) -> Samples:
        """Requests that were sent and not answered with 200."""
        samples = self.samples
        cut_off = np.equal(samples.outcome, int(Outcome.UNANSWERED)) & (
            samples.due_s > np.nanmax(samples.sent_s) - PATIENCE_S
        )
        return samples.only(~samples.ok & ~np.equal(samples.outcome, int(Outcome.DROPPED)) & ~cut_off)

    def nothing_failed(self) -> None:
        assert not len(self.failed), self.result.total.counts
        assert not self.result.total.missed, self.result.verdict

    def broke_once(self) -> None:
        """Nothing failed but with one process that held the connections: these broke, and all at one time."""
        failed = self.failed
        assert set(failed.outcome.tolist()) <= {int(Outcome.CONNECTION)}, self.result.total.counts
        if len(failed):
            assert failed.sent_s.max() < failed.done_s.min() + TOGETHER_S, (failed.sent_s, failed.done_s)
        dropped = np.count_nonzero(np.equal(self.samples.outcome, int(Outcome.DROPPED)))
        assert dropped <= DROPPED_SHARE * len(self.samples), self.result.verdict

    def _answered(self) -> float:
        """Requests that the node's gateways have answered with 200."""
        _, text = self._prism.get("/metrics")
        wanted = ("prism_requests_total{", f'model="{self._model}"', 'status="200"')
        lines = [line for line in text.decode().splitlines() if all(word in line for word in wanted)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)
