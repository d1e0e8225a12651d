"""How well answers fit labels: task metrics on arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cluster.errors import InvalidRequest

Measure = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """A measure of (answers, labels), rows first.

    `higher` says whether more is better. A drop is absolute where more is better, and relative to the source's value
    for errors, whose scale only the user knows.
    """

    name: str
    measure: Measure
    higher: bool

    def drop(self, before: float, after: float) -> float:
        """How much worse `after` is; negative if it is better."""
        if self.higher:
            return before - after
        return (after - before) / before if before > 0 else (0.0 if after <= before else float("inf"))


def accuracy(answers: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows with the right class: the largest of [n, k] scores, a score above 0.5, or an equal value."""
    return float((_classes(answers) == labels.reshape(len(labels), -1)[:, 0]).mean())


def top5(answers: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose class is among the five largest of [n, k] scores. Raises: InvalidRequest."""
    if answers.ndim != 2 or answers.shape[1] < 6:
        raise InvalidRequest(f"metric: top5 needs scores of at least 6 classes, got {list(answers.shape)}")
    best = np.argpartition(answers, -5, axis=1)[:, -5:]
    return float((best == labels.reshape(-1, 1)).any(axis=1).mean())


def mse(answers: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared error."""
    return float(np.square(_difference(answers, labels)).mean())


def rmse(answers: np.ndarray, labels: np.ndarray) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(mse(answers, labels)))


def mae(answers: np.ndarray, labels: np.ndarray) -> float:
    """Mean absolute error."""
    return float(np.abs(_difference(answers, labels)).mean())


def auc(answers: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve of the last column, by ranks (Mann-Whitney); ties count half. Raises: InvalidRequest."""
    scores = answers.reshape(len(answers), -1)[:, -1].astype(np.float64)
    positive = labels.reshape(-1).astype(bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        raise InvalidRequest("metric: auc needs rows of both classes (labels 0 and 1)")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def _classes(answers: np.ndarray) -> np.ndarray:
    flat = answers.reshape(len(answers), -1)
    if answers.dtype.kind != "f":
        return flat[:, 0]
    return np.argmax(flat, axis=1) if flat.shape[1] > 1 else (flat[:, 0] > 0.5).astype(np.int64)


def _difference(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if answers.size != labels.size:
        raise InvalidRequest(f"metric: expected as many values as labels, got {answers.size} and {labels.size}")
    return answers.astype(np.float64).reshape(-1) - labels.astype(np.float64).reshape(-1)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, higher=True),
        Metric("top5", top5, higher=True),
        Metric("auc", auc, higher=True),
        Metric("mse", mse, higher=False),
        Metric("rmse", rmse, higher=False),
        Metric("mae", mae, higher=False),
    )
}


def parse_metric(text: str) -> tuple[Metric, str | None]:
    """`accuracy`, or `accuracy:scores` for the output called so. Raises: InvalidRequest."""
    name, _, output = text.partition(":")
    if name not in METRICS:
        raise InvalidRequest(f"metric: expected one of {', '.join(METRICS)}, got {name!r}")
    return METRICS[name], output or None
