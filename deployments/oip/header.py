"""The JSON part of an inference request, checked for form only: which fields there are and of which type.

Source: Open Inference Protocol, "Inference Request JSON Object"; binary tensor data extension for the parameters.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from cluster.errors import InvalidRequest, TooLarge
from deployments.call import Buffer

Scalar = bool | int | float | str | None
Parameters = dict[str, Scalar]

MAX_PART_BYTES = 64 << 10  # of JSON in one field beside tensors' data: objects take the event loop some 100 ns each
MAX_OBJECTS = 4096  # in `inputs`


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


class _Envelope(msgspec.Struct, gc=False):
    """`RequestHeader` with its parts as they came, which takes no memory and hardly any time, however many they are."""

    inputs: msgspec.Raw
    id: str = ""
    outputs: msgspec.Raw = msgspec.Raw(b"null")
    parameters: msgspec.Raw = msgspec.Raw(b"{}")


class _Input(msgspec.Struct, gc=False):
    """Likewise `InputHeader`."""

    name: str
    datatype: str
    shape: msgspec.Raw
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    data: msgspec.Raw = msgspec.Raw()


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_INPUTS = msgspec.json.Decoder(list[_Input])
_OUTPUTS = msgspec.json.Decoder(list[OutputHeader] | None)
_SHAPE = msgspec.json.Decoder(list[int])
_PARAMETERS = msgspec.json.Decoder(Parameters)

_PLACE = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)
_SCAN_BYTES = 64 << 10
_NO_MARKS = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1

T = TypeVar("T")


def parse_header(raw: Buffer, max_depth: int) -> RequestHeader:
    """Raises: InvalidRequest, naming the field; TooLarge for parts that would take long to look at."""
    envelope = _decoded(_ENVELOPE, raw, "request")
    _check_size(envelope.outputs, "outputs")
    _check_size(envelope.parameters, "parameters")
    text = bytes(envelope.inputs)
    if text.count(b"{") > MAX_OBJECTS and _structure(text).objects > MAX_OBJECTS:
        raise TooLarge(f"inputs: at most {MAX_OBJECTS} objects are accepted")
    inputs = _decoded(_INPUTS, text, "inputs")
    header = RequestHeader(
        [_input(tensor, f"inputs[{i}]") for i, tensor in enumerate(inputs)],
        envelope.id,
        _decoded(_OUTPUTS, envelope.outputs, "outputs"),
        _decoded(_PARAMETERS, envelope.parameters, "parameters"),
    )
    _check_depth(raw, inputs, max_depth)
    return header


def _input(tensor: _Input, field: str) -> InputHeader:
    _check_size(tensor.shape, f"{field}.shape")
    _check_size(tensor.parameters, f"{field}.parameters")
    shape = _decoded(_SHAPE, tensor.shape, f"{field}.shape")
    parameters = _decoded(_PARAMETERS, tensor.parameters, f"{field}.parameters")
    return InputHeader(tensor.name, tensor.datatype, shape, parameters, tensor.data)


def _check_size(part: msgspec.Raw, field: str) -> None:
    size = len(memoryview(part))
    if size > MAX_PART_BYTES:
        raise TooLarge(f"{field}: at most {MAX_PART_BYTES} bytes of JSON are accepted, got {size}")


def _decoded(decoder: msgspec.json.Decoder[T], raw: Buffer | msgspec.Raw, field: str) -> T:
    try:
        return decoder.decode(raw)
    except RecursionError:
        raise InvalidRequest(f"{field}: JSON nested too deep") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{field}: JSON must be UTF-8") from None
    except (msgspec.DecodeError, ValueError) as error:
        said = complaint(error, field)
        if "invalid character" in said:
            said += "; NaN and infinities are not JSON, send them as binary tensor data"
        raise InvalidRequest(said) from None


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


def _check_depth(raw: Buffer, inputs: list[_Input], max_depth: int) -> None:
    """Tensors' own nesting is bounded by their shape; this bounds what surrounds them, unknown fields included."""
    opened = _opened(bytes(raw))
    if opened <= max_depth:
        return
    for tensor in inputs:
        opened -= _opened(bytes(tensor.data))
    if opened <= max_depth:
        return
    depth = _structure(bytes(raw)).depth
    if depth > max_depth:
        raise InvalidRequest(f"request: JSON nested at most {max_depth} deep is accepted, got {depth}")


def _opened(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


class _Structure(NamedTuple):
    depth: int
    objects: int


def _structure(text: bytes) -> _Structure:
    """How deep valid JSON is nested and how many objects it has, in a fixed number of passes whatever it holds."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")  # what is left of quotes begins and ends strings
    marks = np.frombuffer(text.translate(None, _NO_MARKS), np.uint8)
    depth = deepest = objects = quoted = 0
    for at in range(0, len(marks), _SCAN_BYTES):  # pieces that fit the processor's cache
        part = marks[at : at + _SCAN_BYTES]
        inside = np.bitwise_xor.accumulate((part == ord('"')).view(np.uint8)) ^ quoted
        steps = _STEPS[part]
        steps[inside.view(np.bool_)] = 0
        depths = np.cumsum(steps, dtype=np.int32)
        deepest = max(deepest, depth + int(depths.max()))
        depth += int(depths[-1])
        objects += int(np.count_nonzero((part == ord("{")) & (inside == 0)))
        quoted = int(inside[-1])
    return _Structure(deepest, objects)
