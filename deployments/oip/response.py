"""Answers as bytes: which outputs in which form, and the JSON around them.

Source: Open Inference Protocol, "Inference Response JSON Object"; binary tensor data and classification extensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from cluster.tensors import Signature
from deployments.call import Buffer, TensorAnswer
from deployments.oip.json_tensors import values_for_json
from deployments.wire.strings import encode_strings

_KEPT_HEADERS = 64  # per plan: answers of so many different shapes


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output of an answer: its place in the signature, its form, and, with `classes`, the best k instead of it."""

    index: int
    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class OutputPlan:
    """The outputs of an answer in the order they were asked for.

    `plain` plans have only binary tensors of fixed element size, so the JSON about them depends on the shapes alone
    and is kept.
    """

    outputs: tuple[Wanted, ...]
    plain: bool
    kept: dict[tuple[tuple[int, ...], ...], bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A response body: `json`, then `tensors`. With `binary`, the length of `json` goes into the HTTP header
    `Inference-Header-Content-Length`."""

    json: bytes
    tensors: Sequence[Buffer]
    binary: bool


def encode_answer(
    plan: OutputPlan, answer: TensorAnswer, signature: Signature, labels: Sequence[str], head: bytes, id: str
) -> Encoded:
    """`head` is the JSON up to the id: `{"model_name":...,"model_version":...,`.

    Raises: InvalidRequest if an output has no JSON form.
    """
    if plan.plain:
        tail = plan.kept.get(answer.shapes)
        if tail is None:
            tail, _ = _outputs(plan, answer, signature, labels)
            if len(plan.kept) >= _KEPT_HEADERS:
                plan.kept.clear()
            plan.kept[answer.shapes] = tail
        data = answer.data
        tensors: Sequence[Buffer] = data if len(data) == 1 else [data[wanted.index] for wanted in plan.outputs]
    else:
        tail, tensors = _outputs(plan, answer, signature, labels)
    json = b'%b"id":%b,%b' % (head, orjson.dumps(id), tail) if id else head + tail
    return Encoded(json, tensors, plan.plain or any(wanted.binary for wanted in plan.outputs))


def _outputs(
    plan: OutputPlan, answer: TensorAnswer, signature: Signature, labels: Sequence[str]
) -> tuple[bytes, list[Buffer]]:
    described: list[dict[str, Any]] = []
    tensors: list[Buffer] = []
    for wanted in plan.outputs:
        spec, shape, data = signature.outputs[wanted.index], answer.shapes[wanted.index], answer.data[wanted.index]
        about: dict[str, Any] = {"name": spec.name, "datatype": spec.dtype, "shape": shape}
        if wanted.classes:
            scores = np.frombuffer(data, spec.numpy).reshape((shape[0] if signature.batched else 1, -1))
            best = best_classes(scores, wanted.classes, labels)
            k = len(best) // max(len(scores), 1)
            about |= {"datatype": "BYTES", "shape": [len(scores), k] if signature.batched else [k]}
            if wanted.binary:
                data = encode_strings(best)
            else:
                about["data"] = best
        elif not wanted.binary:
            about["data"] = values_for_json(data, spec, shape)
        if wanted.binary:
            about["parameters"] = {"binary_data_size": len(data)}
            tensors.append(data)
        described.append(about)
    return orjson.dumps({"outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)[1:], tensors


def best_classes(scores: np.ndarray[Any, np.dtype[Any]], k: int, labels: Sequence[str]) -> list[str]:
    """`score:index` or `score:index:label` of the k best of every row, best first, all rows in one list.

    Args:
        scores: Numbers [rows, classes]; NaN ranks last, equal scores by index.
        k: How many; all of them if there are fewer.

    Source: classification extension ("Classification Extension", HTTP/REST).
    """
    ranked = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, : min(k, scores.shape[1])]
    return [
        f"{float(row[i]):f}:{i}" + (f":{labels[i]}" if i < len(labels) else "")
        for row, best in zip(scores, ranked.tolist(), strict=True)
        for i in best
    ]
