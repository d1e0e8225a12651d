"""BYTES tensors as bytes: each element behind its length, a 4-byte little-endian integer.

Source: Open Inference Protocol, binary tensor data extension.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest

_LENGTH = struct.Struct("<I")


def encode_strings(elements: Iterable[bytes | str]) -> bytes:
    """The elements one after another; text as UTF-8. Raises: InvalidRequest for an element that is neither."""
    parts: list[bytes] = []
    for element in elements:
        raw = element.encode() if isinstance(element, str) else element
        if not isinstance(raw, bytes):
            raise InvalidRequest(f"BYTES element: expected bytes or text, got {type(element).__name__}")
        parts.append(_LENGTH.pack(len(raw)))
        parts.append(raw)
    return b"".join(parts)


def decode_strings(data: bytes | bytearray | memoryview, count: int) -> NDArray[np.object_]:
    """Exactly `count` elements as an object array of `bytes`, one-dimensional.

    Raises:
        InvalidRequest: the bytes end early, or more follow.
    """
    view = memoryview(data)
    end = len(view)
    if count * _LENGTH.size > end:
        raise InvalidRequest(f"BYTES tensor: {count} elements need at least {count * _LENGTH.size} bytes, got {end}")
    elements = np.empty(count, object)
    at = 0
    for i in range(count):
        if end - at < _LENGTH.size:
            raise InvalidRequest(f"BYTES tensor: ends within the length of element {i} of {count}")
        (size,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if end - at < size:
            raise InvalidRequest(f"BYTES tensor: element {i} needs {size} bytes, {end - at} are left")
        elements[i] = bytes(view[at : at + size])
        at += size
    if at != end:
        raise InvalidRequest(f"BYTES tensor: {end - at} bytes follow the last of {count} elements")
    return elements
