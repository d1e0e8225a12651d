"""A small client of the Open Inference Protocol over HTTP, with binary tensor data.

Written apart from the server's codec, so that `prism infer` also checks the protocol.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from cluster.errors import InvalidRequest, OperatorError
from cluster.names import Target
from cluster.tensors import DTYPES, Signature, TensorSpec

_LENGTH_HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `outputs` hold numpy arrays; BYTES are arrays of bytes objects."""

    model: str
    version: str
    outputs: dict[str, np.ndarray]


def infer_path(target: Target) -> str:
    tail = f"/versions/{target.version}" if target.version else f"/labels/{target.label}" if target.label else ""
    return f"/v2/models/{quote(target.model, safe='')}{tail}/infer"


def infer(
    url: str, target: Target, body: bytes, header_length: int | None, key: str = "", timeout_s: float = 60.0
) -> Answer:
    """Ask the gateway at `url`. Raises: OperatorError with what it says, or if it says nothing."""
    headers = {"Content-Type": "application/json" if header_length is None else "application/octet-stream"}
    if header_length is not None:
        headers[_LENGTH_HEADER] = str(header_length)
    if key:
        headers["X-Prism-Key"] = key
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("POST", infer_path(target), body, headers)
        response = connection.getresponse()
        raw = response.read()
    except (OSError, HTTPException) as error:
        raise OperatorError(f"the gateway at {url} does not answer: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise _refusal(response.status, raw)
    length = response.getheader(_LENGTH_HEADER)
    return decode(raw, int(length) if length is not None else None)


def encode(inputs: Mapping[str, np.ndarray], signature: Signature) -> tuple[bytes, int]:
    """Body and length of its JSON part, asking for binary outputs. Raises: InvalidRequest, naming the input."""
    missing = [spec.name for spec in signature.inputs if spec.name not in inputs]
    unknown = sorted(set(inputs) - {spec.name for spec in signature.inputs})
    if missing or unknown:
        expected = ", ".join(spec.name for spec in signature.inputs)
        raise InvalidRequest(f"inputs: expected {expected}; got {', '.join(inputs) or 'none'}")
    described, data = [], []
    for spec in signature.inputs:
        array = inputs[spec.name]
        if not spec.admits(array.shape):
            raise InvalidRequest(f"inputs.{spec.name}: expected shape {list(spec.shape)}, got {list(array.shape)}")
        raw = _to_bytes(array, spec)
        described.append(
            {
                "name": spec.name,
                "datatype": spec.dtype,
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(raw)},
            }
        )
        data.append(raw)
    header = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    return b"".join((header, *data)), len(header)


def decode(raw: bytes, header_length: int | None) -> Answer:
    """Raises: OperatorError if the bytes are no answer of the protocol."""
    try:
        header = json.loads(raw if header_length is None else raw[:header_length])
        at = header_length or 0
        outputs: dict[str, np.ndarray] = {}
        for output in header["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            shape, dtype = output["shape"], output["datatype"]
            if size is None:
                numpy = DTYPES[dtype][0]
                outputs[output["name"]] = np.array(output["data"], dtype=numpy).reshape(shape)
                continue
            if at + size > len(raw):
                raise ValueError(f"{output['name']} is cut short")
            outputs[output["name"]] = _from_bytes(raw[at : at + size], dtype).reshape(shape)
            at += size
        return Answer(header["model_name"], str(header.get("model_version", "")), outputs)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise OperatorError(f"the gateway's answer cannot be read: {type(error).__name__}: {error}") from None


def json_body(inputs: Mapping[str, np.ndarray], signature: Signature) -> dict[str, Any]:
    """The same request as plain JSON, for `curl`."""
    return {
        "inputs": [
            {
                "name": spec.name,
                "datatype": spec.dtype,
                "shape": list(inputs[spec.name].shape),
                "data": [
                    value.decode(errors="replace") if isinstance(value, bytes) else value
                    for value in inputs[spec.name].ravel().tolist()
                ],
            }
            for spec in signature.inputs
        ]
    }


def _to_bytes(array: np.ndarray, spec: TensorSpec) -> bytes:
    if spec.dtype == "BYTES":
        items = (item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel().tolist())
        return b"".join(struct.pack("<I", len(item)) + item for item in items)
    if not np.can_cast(array.dtype, spec.numpy, casting="same_kind"):
        raise InvalidRequest(f"inputs.{spec.name}: expected {spec.dtype}, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=spec.numpy).tobytes()


def _from_bytes(raw: bytes, dtype: str) -> np.ndarray:
    if dtype != "BYTES":
        return np.frombuffer(raw, dtype=DTYPES[dtype][0])
    items, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        items.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _refusal(status: int, raw: bytes) -> OperatorError:
    try:
        message = str(json.loads(raw)["error"])
    except (ValueError, KeyError, TypeError):
        message = raw[:200].decode(errors="replace")
    return OperatorError(f"{message} (HTTP {status})")
