"""A task metric on the user's labelled data, before and after a conversion.

The rows are calls like all others that a model is proved on, so the source answers them where it answers those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import InvalidRequest
from cluster.tensors import ANY, TensorSpec
from converters.candidate import Case, Options
from converters.proof.metrics import Metric, parse_metric

ORIGIN = "evaluation"
CALL_ROWS = 32

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One metric on labelled rows. `source` and `drop` are None where no source could be asked."""

    metric: Metric
    output: str
    rows: int
    source: float | None
    converted: float
    max_drop: float | None

    @property
    def drop(self) -> float | None:
        return None if self.source is None else self.metric.drop(self.source, self.converted)

    @property
    def failure(self) -> str | None:
        """Why the gate is closed, or None."""
        if not isfinite(self.converted):
            return f"{self.metric.name} of {self.output} is {self.converted}"
        if self.max_drop is None or self.drop is None or self.drop <= self.max_drop:
            return None
        return (
            f"{self.metric.name} of {self.output} went from {self.source:.4f} to {self.converted:.4f} on {self.rows} "
            f"rows: a drop of {self.drop:.4f}{'' if self.metric.higher else ' (relative)'}, at most "
            f"{self.max_drop:g} is allowed"
        )

    @property
    def note(self) -> str | None:
        """That there is no gate although one was asked for, or None."""
        if self.max_drop is None or self.source is not None:
            return None
        return (
            f"--max-drop bounds nothing here: this form is the source as it came, so its {self.metric.name} of "
            f"{self.converted:.4f} has nothing to drop from"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric.name,
            "output": self.output,
            "rows": self.rows,
            "source": self.source,
            "converted": self.converted,
            "drop": self.drop,
            "max_drop": self.max_drop,
        }


def check_gate(options: Options) -> None:
    """Raises: InvalidRequest if the metric is unknown, or bounded without labelled data to measure it on."""
    parse_metric(options.metric)
    if options.max_drop is not None and options.evaluate is None:
        raise InvalidRequest("max_drop: it bounds a metric, which needs labelled data (--evaluate data.npz)")


def split(data: dict[str, np.ndarray], names: Sequence[str], path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The inputs and the labels of an evaluation file. Raises: InvalidRequest unless one array is no input."""
    extra = sorted(set(data) - set(names))
    if len(extra) != 1 or set(names) - set(data):
        raise InvalidRequest(
            f"evaluate: expected the inputs {list(names)} and one array of labels in {path.name}, got {sorted(data)}"
        )
    labels = data[extra[0]]
    return {name: data[name] for name in names}, labels


def calls(data: dict[str, np.ndarray], specs: Sequence[TensorSpec], batched: bool, max_rows: int) -> tuple[Case, ...]:
    """The rows in order, in calls the model takes; what does not fill a last call of a fixed size is left out."""
    rows = next(iter(data.values())).shape[0]
    fixed = {spec.shape[0] for spec in specs if spec.shape and spec.shape[0] != ANY}
    size = min(CALL_ROWS, max_rows) if batched else (fixed.pop() if len(fixed) == 1 else 1)
    found = []
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        if stop - start == size or batched:
            inputs = {name: np.ascontiguousarray(array[start:stop]) for name, array in data.items()}
            found.append(Case(ORIGIN, stop - start if batched else 1, inputs))
    if not found:
        raise InvalidRequest(f"evaluate: expected at least {size} rows, which one call takes, got {rows}")
    return tuple(found)


def evaluate(
    metric_text: str,
    max_drop: float | None,
    outputs: Sequence[str],
    labels: np.ndarray,
    expected: Sequence[Arrays],
    got: Sequence[Arrays],
) -> Evaluation:
    """The metric of the source's and the target's answers to the evaluation's calls, in order.

    Raises: InvalidRequest if the metric's output is unknown or its answers do not fit the labels.
    """
    metric, name = parse_metric(metric_text)
    name = name or outputs[0]
    if name not in outputs:
        raise InvalidRequest(f"metric: expected an output of {list(outputs)}, got {name!r}")
    i = list(outputs).index(name)
    after = np.concatenate([np.atleast_1d(arrays[i]) for arrays in got])
    used = labels[: len(after)]
    if len(used) != len(after):
        raise InvalidRequest(f"evaluate: expected a label for each of {len(after)} rows, got {len(used)}")
    before = np.concatenate([np.atleast_1d(arrays[i]) for arrays in expected]) if expected else None
    source = metric.measure(before, used) if before is not None else None
    return Evaluation(metric, name, len(used), source, metric.measure(after, used), max_drop)
