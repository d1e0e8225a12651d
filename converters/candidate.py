"""What passes between the steps of a conversion: a model that is not proved yet, with the inputs to prove it on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import InvalidRequest

Say = Callable[[str], None]
"""Told what a conversion does next, in a few words."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user says about a conversion.

    Attributes:
        factory: `module:callable`, or the callable: builds the torch module that the weights are for.
        sample: An `.npz` with one array per input, rows first.
        inputs: Input specs as `name:DTYPE:N,3,224,224`, where there is no sample (and for dynamic axes: `N,L=128`).
        calibrate: An `.npz` like `sample`: what INT8 ranges are measured on.
        dynamic: Free axes as `name:axis=min..max`; axis 0 counts rows and needs none.
        evaluate: An `.npz` like `sample` with one array more: the right answer to each row.
        metric: A name of `metrics.METRICS`, or `name:output`; how well `evaluate` is answered.
        max_drop: The most that the metric may get worse, from the source to the target.
        labels: Class names by index.
        max_rows: Most rows of one call; 1 means that rows are not batched.
        tolerance: Overrides, as `parity.parse_tolerance` gives them.
        timing_cache: A file that TensorRT's builder reads and writes: what it measured need not be measured again.
        engine: "here", or "on-load": TensorRT engines are left to the first replica that loads the artifact.
        compiled: "off", "auto" (where it is measured to pay) or "on": compiled code for what PyTorch serves.
        trust_pickle: Load files that can run code.
        device: "cpu", "gpu" or "auto": where the target is proved and measured, as `runtime.open_runtime` has it.
        threads: Threads to prove and profile with.
        profile_s: Seconds the profile may take.
        apart: Load the source and make the targets in a process of their own, where an abort of the interpreter is an
            error and not the end of this one. A factory must then be a name.
        timeout_s: Most seconds that making the targets may take, where they are made apart.
    """

    factory: str | Callable[[], Any] | None = None
    sample: Path | None = None
    inputs: tuple[str, ...] = ()
    calibrate: Path | None = None
    dynamic: tuple[str, ...] = ()
    evaluate: Path | None = None
    metric: str = "accuracy"
    max_drop: float | None = None
    labels: tuple[str, ...] = ()
    max_rows: int = 64
    tolerance: Mapping[str, float] = field(default_factory=dict)
    timing_cache: Path | None = None
    engine: str = "here"
    compiled: str = "off"
    trust_pickle: bool = False
    device: str = "cpu"
    threads: int = 1
    profile_s: float = 6.0
    apart: bool = False
    timeout_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for another process. Raises: InvalidRequest if the factory is not a name."""
        if callable(self.factory):
            raise InvalidRequest("factory: expected module:callable, which another process can import, got a callable")
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()} | {
            "tolerance": dict(self.tolerance)
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Options:
        """What `to_json` gave, after JSON."""
        paths = {name: Path(values[name]) for name in _PATHS if values[name] is not None}
        return cls(**{**values, **paths, **{name: tuple(values[name]) for name in _TUPLES}})


_PATHS = ("sample", "calibrate", "evaluate", "timing_cache")
_TUPLES = ("inputs", "dynamic", "labels")


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of one call. `origin` says where they come from: "sample", "calibration", "evaluation" or
    "random", or which edge of the free axes it is at."""

    origin: str
    rows: int
    inputs: Mapping[str, np.ndarray]

    def describe(self) -> dict[str, Any]:
        return {"inputs": self.origin, "rows": self.rows}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model in the middle of a conversion.

    Attributes:
        path: The model's file. What belongs to it lies beside it, or in folders below `folder`.
        precision: A key of `parity.TOLERANCES`.
        source: Where it came from: at least `kind`, `file` and `sha256`.
        cases: The calls that it is proved on.
        reference: The source's outputs per case, each in output order; empty if nothing can be compared with.
        reference_kind: Who computed `reference`.
        tools: Versions, by name, of what made it.
        notes: What the user should know.
        max_rows: The most rows that the model itself allows.
        format: The key of `runtime.RUNTIMES` that executes it.
        folder: The artifact's directory, which the conversion's caller fills in.
        unexecuted: That this machine cannot run it, why, and what was compared instead; empty where it can.
        stand_in: Where it cannot be run: the ONNX file that is proved in its place.
        extra: For the manifest's `extra`.
    """

    path: Path
    precision: str
    source: Mapping[str, Any]
    cases: tuple[Case, ...] = ()
    reference: tuple[tuple[np.ndarray, ...], ...] = ()
    reference_kind: str = "self"
    tools: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    max_rows: int = 1 << 30
    format: str = "onnx"
    folder: Path | None = None
    unexecuted: str = ""
    stand_in: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The artifact's directory."""
        return self.folder or self.path.parent
