"""The JSON part of an inference request, checked for form only: which fields there are and of which type.

Source: Open Inference Protocol, "Inference Request JSON Object"; binary tensor data extension for the parameters.
"""

from __future__ import annotations

import re

import msgspec
import numpy as np

from cluster.errors import InvalidRequest
from deployments.call import Buffer

Scalar = bool | int | float | str | None
Parameters = dict[str, Scalar]


class InputHeader(msgspec.Struct, gc=False):
    """One tensor of the request; `data` is its JSON as it came, empty where the tensor is binary."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class OutputHeader(msgspec.Struct, gc=False):
    """One output the client asks for."""

    name: str
    parameters: Parameters = {}


class RequestHeader(msgspec.Struct, gc=False):
    """Fields the protocol does not know are let pass, as it asks of servers."""

    inputs: list[InputHeader]
    id: str = ""
    outputs: list[OutputHeader] | None = None
    parameters: Parameters = {}


_DECODER = msgspec.json.Decoder(RequestHeader)
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_PLACE = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)


def parse_header(raw: Buffer, max_depth: int) -> RequestHeader:
    """Raises: InvalidRequest, naming the field."""
    try:
        header = _DECODER.decode(raw)
    except RecursionError:
        raise InvalidRequest(f"request: JSON nested deeper than {max_depth}") from None
    except UnicodeDecodeError:
        raise InvalidRequest("request: JSON must be UTF-8") from None
    except (msgspec.DecodeError, ValueError) as error:
        said = complaint(error, "request")
        if "invalid character" in said:
            said += "; NaN and infinities are not JSON, send them as binary tensor data"
        raise InvalidRequest(said) from None
    _check_depth(raw, header, max_depth)
    return header


def complaint(error: Exception, field: str) -> str:
    """What a JSON decoder said, as `field.place: what`."""
    text = str(error).replace("`", "") if not (found := _PLACE.match(str(error))) else ""
    if found:
        what, place = found.groups()
        place = place if field == "request" else field + (place if place.startswith("[") else f".{place}")
        return f"{place or field}: {_lower(what.replace('`', ''))}"
    return f"{field}: {_lower(text)}"


def _lower(text: str) -> str:
    return text if text.startswith("JSON") else text[:1].lower() + text[1:]


def _check_depth(raw: Buffer, header: RequestHeader, max_depth: int) -> None:
    """Tensors' own nesting is bounded by their shape; this bounds what surrounds them, unknown fields included."""
    whole = bytes(raw)
    opened = whole.count(b"[") + whole.count(b"{")
    if opened <= max_depth:
        return
    for tensor in header.inputs:
        data = bytes(tensor.data)
        opened -= data.count(b"[") + data.count(b"{")
    if opened <= max_depth:
        return
    marks = np.frombuffer(_STRINGS.sub(b"", whole), np.uint8)
    steps = np.isin(marks, (0x5B, 0x7B)).astype(np.int32) - np.isin(marks, (0x5D, 0x7D))
    deepest = int(np.cumsum(steps).max(initial=0))
    if deepest > max_depth:
        raise InvalidRequest(f"request: JSON nested at most {max_depth} deep is accepted, got {deepest}")
