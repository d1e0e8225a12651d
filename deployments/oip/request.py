"""What a request's JSON header says, checked against a version's signature.

The result is a `Template`: everything but the bytes. Clients send the same header again and again, so templates of
purely binary requests are kept by `InferCodec` and filled with the next body.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from cluster.errors import InvalidRequest, TooLarge
from cluster.tensors import ANY, Signature, TensorSpec
from deployments.call import BATCH, INTERACTIVE, Buffer
from deployments.oip.header import InputHeader, RequestHeader, Scalar
from deployments.oip.json_tensors import tensor_from_json
from deployments.oip.response import OutputPlan, Wanted

MAX_JSON_BYTES = 16 << 20  # parsing blocks the event loop: some 10 ns a byte

# These two take the event loop some 0.1 s; binary tensors of numbers are only bounded by the body.
MAX_JSON_VALUES = 1 << 19
MAX_STRINGS = 1 << 17

_LENGTH = struct.Struct("<I")
_MAX_DIMENSION = 1 << 48


@dataclass(frozen=True, slots=True)
class Limits:
    """What a gateway accepts in one request. `max_json_bytes` bounds JSON, tensors written as JSON included.

    `max_json_values` are numbers and booleans of tensors written as JSON, `max_strings` elements of BYTES tensors in
    either form; all tensors of a request together.
    """

    max_json_bytes: int = MAX_JSON_BYTES
    max_json_depth: int = 100
    max_json_values: int = MAX_JSON_VALUES
    max_strings: int = MAX_STRINGS
    max_tensors: int = 256
    max_deadline_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Template:
    """A request without its binary tensors.

    `data` holds the tensors that came as JSON, in signature order, with None where `slices` says which bytes after
    the header a tensor is. `checked` are the inputs whose bytes have a form of their own (BYTES, BOOL).
    """

    rows: int
    shapes: tuple[tuple[int, ...], ...]
    slices: tuple[tuple[int, int], ...]
    data: tuple[Buffer | None, ...]
    binary_bytes: int
    checked: tuple[int, ...]
    plan: OutputPlan
    timeout_s: float  # 0: the version's default
    priority: int
    id: str

    @property
    def reusable(self) -> bool:
        """Whether the next request with the same header is the same but for its id and its binary tensors."""
        return all(part is None for part in self.data)


def template_of(
    header: RequestHeader, signature: Signature, limits: Limits, plan_of: Callable[[tuple[Wanted, ...]], OutputPlan]
) -> Template:
    """Raises: InvalidRequest, naming the field; TooLarge."""
    inputs = header.inputs
    if len(inputs) > limits.max_tensors or len(header.outputs or ()) > limits.max_tensors:
        raise TooLarge(f"inputs and outputs: at most {limits.max_tensors} of each are accepted")
    places = _places(inputs, signature)
    rows = 1
    shapes: list[tuple[int, ...]] = []
    slices: list[tuple[int, int]] = [(0, 0)] * len(inputs)
    data: list[Buffer | None] = [None] * len(inputs)
    for n, spec in enumerate(signature.inputs):
        i = places[spec.name]
        shape = _shape(inputs[i], spec, f"inputs[{i}]")
        if signature.batched:
            if n and shape[0] != rows:
                raise InvalidRequest(f"inputs[{i}].shape: expected {rows} rows like the other inputs, got {shape[0]}")
            rows = shape[0]
        shapes.append(shape)
    if signature.batched and not 1 <= rows <= signature.max_rows:
        raise InvalidRequest(f"inputs[0].shape: expected 1 to {signature.max_rows} rows, got {rows}")
    _check_counts(inputs, places, shapes, signature, limits)
    order = {spec.name: n for n, spec in enumerate(signature.inputs)}
    at = 0
    for i, tensor in enumerate(inputs):  # binary tensors lie behind the header in the order of `inputs`
        n = order[tensor.name]
        spec = signature.inputs[n]
        size = _binary_size(tensor, spec, shapes[n], f"inputs[{i}]")
        if size is None:
            data[n] = tensor_from_json(tensor.data, spec, shapes[n], f"inputs[{i}].data")
        else:
            slices[n] = (at, at + size)
            at += size
    checked = tuple(n for n, spec in enumerate(signature.inputs) if data[n] is None and spec.dtype in ("BYTES", "BOOL"))
    return Template(
        rows=rows,
        shapes=tuple(shapes),
        slices=tuple(slices),
        data=tuple(data),
        binary_bytes=at,
        checked=checked,
        plan=plan_of(_wanted(header, signature)),
        timeout_s=_timeout_s(header.parameters.get("timeout")),
        priority=_priority(header.parameters.get("priority")),
        id=header.id,
    )


def raw_template(size: int, signature: Signature, plan: OutputPlan) -> Template:
    """The template of a request that is nothing but one tensor's bytes.

    Source: binary tensor data extension, "Raw Binary Request": one input whose shape is known but for the rows.

    Raises: InvalidRequest.
    """
    if len(signature.inputs) != 1:
        raise InvalidRequest(f"request: a raw binary request is for models of one input, {len(signature.inputs)} here")
    spec = signature.inputs[0]
    fixed = spec.shape[1:] if signature.batched else spec.shape
    if spec.item_bytes == 0 or ANY in fixed:
        raise InvalidRequest(
            f"request: a raw binary request needs an input of fixed size, {spec.name} is {spec.dtype} "
            f"{list(spec.shape)}; send a JSON header"
        )
    row_bytes = prod(fixed) * spec.item_bytes
    rows = size // row_bytes if row_bytes else 0
    if rows * row_bytes != size or not 1 <= rows <= signature.max_rows:
        times = f"1 to {signature.max_rows} times " if signature.max_rows > 1 else ""
        raise InvalidRequest(f"request: expected {times}{row_bytes} bytes of {spec.name}, got {size}")
    return Template(
        rows=rows,
        shapes=((rows, *fixed) if signature.batched else fixed,),
        slices=((0, size),),
        data=(None,),
        binary_bytes=size,
        checked=(0,) if spec.dtype == "BOOL" else (),
        plan=plan,
        timeout_s=0.0,
        priority=INTERACTIVE,
        id="",
    )


def check_elements(data: memoryview, spec: TensorSpec, shape: tuple[int, ...], field: str) -> None:
    """Whether the bytes of a BYTES or BOOL tensor are such elements. Raises: InvalidRequest."""
    count = prod(shape)
    if spec.dtype == "BOOL":
        if count and np.frombuffer(data, np.uint8).max() > 1:
            raise InvalidRequest(f"{field}: BOOL elements are the bytes 0 and 1")
        return
    end = len(data)
    if count * _LENGTH.size > end:
        raise InvalidRequest(f"{field}: {list(shape)} needs {count} elements of at least 4 bytes, got {end} bytes")
    at = 0
    length_of = _LENGTH.unpack_from
    for i in range(count):
        if end - at < 4:
            raise InvalidRequest(f"{field}: ends within the length of element {i} of {count}")
        at += 4 + length_of(data, at)[0]
        if at > end:
            raise InvalidRequest(f"{field}: element {i} of {count} ends {at - end} bytes behind the tensor")
    if at != end:
        raise InvalidRequest(f"{field}: {end - at} bytes follow the last of {count} elements")


def _check_counts(
    inputs: list[InputHeader],
    places: Mapping[str, int],
    shapes: list[tuple[int, ...]],
    signature: Signature,
    limits: Limits,
) -> None:
    """Raises: TooLarge if there are more single values to look at than the limits allow."""
    values = strings = 0
    for spec, shape in zip(signature.inputs, shapes, strict=True):
        if spec.dtype == "BYTES":
            strings += prod(shape)
        elif "binary_data_size" not in inputs[places[spec.name]].parameters:
            values += prod(shape)
    if strings > limits.max_strings:
        raise TooLarge(f"inputs: at most {limits.max_strings} BYTES elements are accepted, got {strings}")
    if values > limits.max_json_values:
        most = limits.max_json_values
        raise TooLarge(f"inputs: at most {most} values are accepted as JSON, got {values}; send binary tensor data")


def _places(inputs: list[InputHeader], signature: Signature) -> dict[str, int]:
    """Position in the request by input name: every input of the signature once, and nothing else."""
    known = [spec.name for spec in signature.inputs]
    places: dict[str, int] = {}
    for i, tensor in enumerate(inputs):
        if tensor.name not in known:
            raise InvalidRequest(f"inputs[{i}].name: expected one of {known}, got {tensor.name!r}")
        if tensor.name in places:
            raise InvalidRequest(f"inputs[{i}].name: {tensor.name!r} appears twice")
        places[tensor.name] = i
    missing = [name for name in known if name not in places]
    if missing:
        raise InvalidRequest(f"inputs: expected {known}, {missing} missing")
    return places


def _shape(tensor: InputHeader, spec: TensorSpec, field: str) -> tuple[int, ...]:
    if tensor.datatype != spec.dtype:
        raise InvalidRequest(f"{field}.datatype: expected {spec.dtype}, got {tensor.datatype!r}")
    shape = tuple(tensor.shape)
    if any(d < 0 or d > _MAX_DIMENSION for d in shape) or not spec.admits(shape):
        raise InvalidRequest(f"{field}.shape: expected {list(spec.shape)}, got {tensor.shape[:16]}")
    return shape


def _binary_size(tensor: InputHeader, spec: TensorSpec, shape: tuple[int, ...], field: str) -> int | None:
    """Bytes of the tensor behind the header, or None where it is in the JSON."""
    parameters = tensor.parameters
    if "shared_memory_region" in parameters:
        raise InvalidRequest(f"{field}.parameters.shared_memory_region: shared memory is not offered")
    size = parameters.get("binary_data_size")
    in_json = len(bytes(tensor.data)) > 0
    if size is None:
        if not in_json:
            raise InvalidRequest(f"{field}: expected data or parameters.binary_data_size, got neither")
        return None
    if in_json:
        raise InvalidRequest(f"{field}: expected data or parameters.binary_data_size, got both")
    if type(size) is not int or size < 0:
        raise InvalidRequest(f"{field}.parameters.binary_data_size: expected a number of bytes, got {size!r}")
    needed = prod(shape) * spec.item_bytes
    if spec.item_bytes and size != needed:
        raise InvalidRequest(f"{field}: {spec.dtype} {list(shape)} needs {needed} bytes, binary_data_size is {size}")
    return size


def _wanted(header: RequestHeader, signature: Signature) -> tuple[Wanted, ...]:
    """The outputs asked for; all of them, in signature order, if none are named."""
    # Binary tensor data extension: `binary_data_output` is the default for every output, `binary_data` overrides it.
    binary = _flag(header.parameters, "binary_data_output", "parameters", False)
    if not header.outputs:
        wanted = [Wanted(n, binary) for n in range(len(signature.outputs))]
    else:
        names = [spec.name for spec in signature.outputs]
        wanted = []
        for i, output in enumerate(header.outputs):
            field = f"outputs[{i}]"
            if output.name not in names:
                raise InvalidRequest(f"{field}.name: expected one of {names}, got {output.name!r}")
            n = names.index(output.name)
            if any(other.index == n for other in wanted):
                raise InvalidRequest(f"{field}.name: {output.name!r} appears twice")
            if "shared_memory_region" in output.parameters:
                raise InvalidRequest(f"{field}.parameters.shared_memory_region: shared memory is not offered")
            classes = _classes(output.parameters, signature.outputs[n], f"{field}.parameters")
            wanted.append(Wanted(n, _flag(output.parameters, "binary_data", f"{field}.parameters", binary), classes))
    for each in wanted:
        spec = signature.outputs[each.index]
        if spec.dtype == "FP16" and not each.binary and not each.classes:
            raise InvalidRequest(f"outputs.{spec.name}: FP16 has no JSON form; ask for it with binary_data")
    return tuple(wanted)


def _classes(parameters: Mapping[str, Scalar], spec: TensorSpec, field: str) -> int:
    k = parameters.get("classification")
    if k is None:
        return 0
    if type(k) is not int or k < 1:
        raise InvalidRequest(f"{field}.classification: expected how many classes, at least 1, got {k!r}")
    if spec.dtype in ("BYTES", "BOOL"):
        raise InvalidRequest(f"{field}.classification: {spec.name} is {spec.dtype}, which has no scores")
    return min(k, 1 << 31)


def _flag(parameters: Mapping[str, Scalar], name: str, field: str, default: bool) -> bool:
    value = parameters.get(name)
    if value is None:
        return default
    if type(value) is not bool:
        raise InvalidRequest(f"{field}.{name}: expected true or false, got {value!r}")
    return value


def _timeout_s(value: Scalar) -> float:
    """Seconds from the `timeout` parameter, which counts microseconds; 0 and nothing mean no wish."""
    if value is None:
        return 0.0
    if type(value) is not int or value < 0:
        raise InvalidRequest(f"parameters.timeout: expected whole microseconds, got {value!r}")
    return min(value, 1 << 53) / 1e6


def _priority(value: Scalar) -> int:
    """INTERACTIVE for nothing, 0 and 1 (the protocol's most urgent), BATCH for what is less urgent."""
    if value is None:
        return INTERACTIVE
    if type(value) is not int or value < 0:
        raise InvalidRequest(f"parameters.priority: expected 0, 1 (urgent) or more, got {value!r}")
    return INTERACTIVE if value <= 1 else BATCH
