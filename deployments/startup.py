"""What a replica's start was spent on: one entry per step, in order, in seconds.

A replica measures its own start, from the start of its process on. It travels with the replica's addresses, so that
whoever knows a replica knows how it started.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec
import psutil

METADATA = "start"  # its key in a replica's metadata

PROCESS, FETCH, LOAD, WARM_UP, MEASURE, LISTEN = "process", "fetch", "load", "warm-up", "measure", "listen"
"""Ray's worker with all imports; the artifact, read and verified; the runtime's session; the sample run through it;
batches timed where the profile is of another kind of machine; sockets bound."""

BUILD = "build"
"""Part of loading that happens once for a kind of GPU: an engine, built or waited for, and kept for later replicas."""


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds by step, and the Unix time at which the replica could answer."""

    steps: dict[str, float]
    ready_s: float

    @property
    def total_s(self) -> float:
        return sum(self.steps.values())

    @property
    def again_s(self) -> float:
        """Seconds that another replica will take: what was built is kept."""
        return self.total_s - self.steps.get(BUILD, 0.0)

    def __str__(self) -> str:
        parts = ", ".join(f"{step} {seconds:.2f}" for step, seconds in self.steps.items())
        return f"started in {self.total_s:.2f} s: {parts}"

    def encode(self) -> str:
        return msgspec.json.encode({"steps": self.steps, "ready_s": self.ready_s}).decode()

    @classmethod
    def decode(cls, text: str) -> Start | None:
        """None if it is not one: a replica of another release may say something else."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError:
            return None


class Stopwatch:
    """Begins where the process did; `lap` ends a step, which the next one follows without a gap."""

    def __init__(self, process_started_s: float) -> None:
        """`process_started_s`: Unix time. Ray may have kept the process idle since; that counts as its start."""
        self._steps: dict[str, float] = {}
        self._at_s = process_started_s

    @classmethod
    def of_this_process(cls) -> Stopwatch:
        return cls(psutil.Process().create_time())

    def lap(self, step: str, now_s: float | None = None) -> None:
        """What has passed since the last lap was `step`."""
        now_s = time.time() if now_s is None else now_s
        self._steps[step] = self._steps.get(step, 0.0) + max(0.0, now_s - self._at_s)
        self._at_s = now_s

    def split(self, step: str, part: str, seconds: float) -> None:
        """So many seconds of `step`, which has ended, were `part`; none is no step of its own."""
        taken_s = min(max(0.0, seconds), self._steps[step])
        if taken_s:
            self._steps[step] -= taken_s
            self._steps[part] = self._steps.get(part, 0.0) + taken_s

    def finished(self) -> Start:
        return Start({step: round(seconds, 3) for step, seconds in self._steps.items()}, self._at_s)
