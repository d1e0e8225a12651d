"""Tensors written as JSON: into row-major little-endian bytes and back.

Values must be of the tensor's own kind: no fraction is cut off, no number wraps, `true` is not 1. A float that is
too large for the type is refused. In answers NaN and infinities become `null`, since JSON has no word for them; binary
tensor data carries every value.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any

import msgspec
import numpy as np

from cluster.errors import InvalidRequest
from cluster.tensors import TensorSpec
from deployments.call import Buffer
from deployments.oip.header import complaint
from deployments.wire.strings import decode_strings, encode_strings

_OPENING = re.compile(rb"[\[ \t\r\n]*")
_EMPTY = re.compile(rb"[\[\], \t\r\n]*\Z")
_FEW = 4096  # so many values more than the shape has are decoded before they are refused
_MAX_DEPTH = 32  # decoders are kept per nesting depth

_KINDS: dict[str, Any] = {"b": bool, "i": int, "u": int, "f": float, "O": str}
_DECODERS: dict[tuple[str, int], msgspec.json.Decoder[Any]] = {}


def tensor_from_json(raw: Buffer, spec: TensorSpec, shape: tuple[int, ...], field: str) -> Buffer:
    """The bytes of the tensor whose JSON is `raw`, a flat list or one nested like `shape`.

    Raises: InvalidRequest, naming `field`.
    """
    if spec.dtype == "FP16":
        # Binary tensor data extension: FP16 has no JSON form.
        raise InvalidRequest(f"{field}: FP16 has no JSON form; send it as binary tensor data")
    text = bytes(raw)
    opening = _OPENING.match(text)
    depth = opening.group().count(b"[") if opening else 0
    count = prod(shape)
    if count == 0 and 0 < depth <= len(shape) and _EMPTY.match(text):
        return b""
    if depth not in (1, len(shape)) or depth > _MAX_DEPTH:
        raise InvalidRequest(f"{field}: expected a flat list or one nested like {list(shape)}, got {depth} levels")
    found = _values(text, spec)
    if found > max(count, _FEW):
        raise InvalidRequest(f"{field}: {list(shape)} needs {count} values, got at least {found}")
    values = _decode(text, np.dtype(spec.numpy).kind, depth, field)
    array = _array(values, spec, field)
    expected = (count,) if depth == 1 else shape
    if array.shape != expected:
        if depth == 1:
            raise InvalidRequest(f"{field}: {list(shape)} needs {count} values, got {array.size}")
        raise InvalidRequest(f"{field}: expected values nested like {list(shape)}, got {list(array.shape)}")
    if spec.dtype == "BYTES":
        return encode_strings(array.reshape(-1))
    return array.reshape(-1).view(np.uint8).data


def values_for_json(data: Buffer, spec: TensorSpec, shape: tuple[int, ...]) -> Any:
    """What orjson writes as the flat list of the tensor's values. Raises: InvalidRequest for BYTES that are no text."""
    if spec.dtype != "BYTES":
        return np.frombuffer(data, spec.numpy)
    try:
        return [element.decode() for element in decode_strings(data, prod(shape))]
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"outputs.{spec.name}: has elements that are not UTF-8; ask for it with binary_data"
        ) from None


def _values(text: bytes, spec: TensorSpec) -> int:
    """How many values there are in a list without empty lists in it; of text perhaps fewer than there are, never
    less than half.
    """
    if spec.dtype == "BYTES":
        return (text.count(b'"') - text.count(b'\\"')) // 2
    return text.count(b",") + 1


def _decode(text: bytes, kind: str, depth: int, field: str) -> Any:
    decoder = _DECODERS.get((kind, depth))
    if decoder is None:
        shape: Any = _KINDS[kind]
        for _ in range(depth):
            shape = list[shape]
        decoder = _DECODERS[kind, depth] = msgspec.json.Decoder(shape)
    try:
        return decoder.decode(text)
    except UnicodeDecodeError:
        raise InvalidRequest(f"{field}: text must be UTF-8") from None
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise InvalidRequest(complaint(error, field)) from None


def _array(values: Any, spec: TensorSpec, field: str) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=spec.numpy)
    except OverflowError:
        raise InvalidRequest(f"{field}: a value is out of the range of {spec.dtype}") from None
    except ValueError:
        raise InvalidRequest(f"{field}: rows must be of equal length") from None
    if spec.dtype == "FP32" and np.isinf(array).any():
        raise InvalidRequest(f"{field}: a value is out of the range of FP32")
    return array
