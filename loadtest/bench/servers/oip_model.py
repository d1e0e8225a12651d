"""An artifact's model behind request bodies of the Open Inference Protocol, for servers that know nothing of it.

JSON, binary tensor data and raw binary bodies, read with `json` and numpy alone: what one would write oneself. Nothing
is checked, so a body that does not fit the model is an exception.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.artifact import Artifact
from cluster.errors import InvalidRequest
from cluster.tensors import ANY, TensorSpec
from loadtest.bench.work import open_session

Arrays = dict[str, NDArray[Any]]
LENGTH = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its tensors by input name, its rows, and whether it is answered in JSON."""

    tensors: Arrays
    rows: int
    in_json: bool


class OipModel:
    """Requests from bodies, answers for batches of requests."""

    def __init__(self, artifact: Artifact, threads: int = 1) -> None:
        if artifact.manifest.format != "onnx":
            raise InvalidRequest(
                f"artifact: expected format onnx, got {artifact.manifest.format}: only that is served here"
            )
        self._signature = artifact.manifest.signature
        self._session = open_session(artifact.model_path, threads)
        self._names = [spec.name for spec in self._signature.outputs]

    def read(self, body: bytes, headers: Mapping[str, str]) -> Asked:
        """The request in `body`; `headers` have lower-case names."""
        length = headers.get(LENGTH)
        if length == "0":
            (spec,) = self._signature.inputs
            tensors = {spec.name: _raw(spec, body)}
        else:
            at = len(body) if length is None else int(length)
            tensors = {}
            specs = {spec.name: spec for spec in self._signature.inputs}
            for item in json.loads(body[:at])["inputs"]:
                spec = specs[item["name"]]
                size = item.get("parameters", {}).get("binary_data_size")
                if size is None:
                    values = np.array(item["data"], dtype=spec.numpy)
                else:
                    values = _values(spec, body[at : at + size])
                    at += size
                tensors[spec.name] = values.reshape(item["shape"])
        rows = len(next(iter(tensors.values()))) if self._signature.batched else 1
        return Asked(tensors, rows, length is None)

    def run(self, requests: list[Asked]) -> list[Arrays]:
        """Answers in the order of `requests`; those whose rows have the same shape share a call."""
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, asked in enumerate(requests):
            shapes = tuple(array.shape[1:] for array in asked.tensors.values())
            groups[shapes if self._signature.batched else i].append(i)
        answers: list[Arrays] = [{}] * len(requests)
        for members in groups.values():
            together = [requests[i].tensors for i in members]
            inputs = {name: _joined([tensors[name] for tensors in together]) for name in together[0]}
            outputs = dict(zip(self._names, self._session.run(self._names, inputs), strict=True))
            if len(members) == 1:
                answers[members[0]] = outputs
                continue
            cuts = np.cumsum([requests[i].rows for i in members])[:-1]
            parts = {name: np.split(array, cuts) for name, array in outputs.items()}
            for at, i in enumerate(members):
                answers[i] = {name: split[at] for name, split in parts.items()}
        return answers

    def write(self, asked: Asked, answer: Arrays) -> tuple[bytes, dict[str, str]]:
        """Body and headers, in the form of the request."""
        outputs, parts = [], []
        for spec in self._signature.outputs:
            array = answer[spec.name]
            item: dict[str, Any] = {"name": spec.name, "shape": list(array.shape), "datatype": spec.dtype}
            if asked.in_json:
                item["data"] = [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]
            else:
                part = _text(array) if spec.dtype == "BYTES" else np.ascontiguousarray(array).tobytes()
                item["parameters"] = {"binary_data_size": len(part)}
                parts.append(part)
            outputs.append(item)
        head = json.dumps({"model_name": "model", "outputs": outputs}).encode()
        if asked.in_json:
            return head, {"Content-Type": "application/json"}
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return b"".join((head, *parts)), headers


def read_model(folder: str, threads: int = 1) -> OipModel:
    """Raises: InvalidRequest, ArtifactCorrupt."""
    return OipModel(Artifact.read(Path(folder)), threads)


def _raw(spec: TensorSpec, body: bytes) -> NDArray[Any]:
    """A raw body's one tensor: its free dimension, if it has one, is what is left."""
    values = _values(spec, body)
    return values.reshape([-1 if size == ANY else size for size in spec.shape])


def _values(spec: TensorSpec, raw: bytes) -> NDArray[Any]:
    if spec.dtype != "BYTES":
        return np.frombuffer(raw, dtype=spec.numpy)
    items, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        items.append(raw[at + 4 : end].decode())
        at = end
    return np.array(items, dtype=object)


def _text(array: NDArray[Any]) -> bytes:
    items = (v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist())
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
