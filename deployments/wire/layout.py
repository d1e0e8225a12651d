"""Where tensors lie in a payload: requests into an INFER frame, its arrays for the engine, and the answers back.

Payloads are tensor-major: for each input the bytes of all requests one after another, each such region padded to
`ALIGNMENT`, so that the replica reads every input as one array without copying it. Answers are laid out the same way.
Everything here works per micro-batch; what is done per request is a slice and an answer object.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import isnan, prod

import numpy as np

from cluster.errors import EngineFailed, InvalidRequest, ServingError, TooLarge, error_from_wire
from cluster.tensors import DTYPES, Signature, TensorSpec
from deployments.call import Buffer, TensorAnswer, TensorRequest
from deployments.wire.batches import Array, MicroBatch, MicroResult
from deployments.wire.frames import ALIGNMENT, Failure, FrameError, Infer, Kind, Payload, Result, encode_frame
from deployments.wire.strings import decode_strings, encode_strings

JOIN_BYTES = 64 << 10  # below this one copy costs less than handing the kernel many small pieces
MAX_ID_LENGTH = 128  # ids and traces travel for logs only
MAX_TRACE_LENGTH = 256
MAX_MESSAGE_LENGTH = 500
_PADDING = [bytes(n) for n in range(ALIGNMENT)]
_NUMPY = {name: np.dtype(code) for name, (code, _) in DTYPES.items()}


def encode_infer(
    call_id: int, requests: Sequence[TensorRequest], batched: bool, backlog_rows: int, now_s: float
) -> list[Buffer]:
    """The frame that carries `requests`, which agree in priority and in shape but for rows; buffers to be written."""
    first = requests[0]
    chunks: list[Buffer] = []
    sizes: list[int] = []
    total = 0
    for i in range(len(first.data)):
        parts = [request.data[i] for request in requests]
        size = sum(map(len, parts))
        chunks += parts
        sizes.append(size)
        total += size + _pad(chunks, size)
    ids: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    if any([request.id or request.trace for request in requests]):
        ids = tuple([request.id[:MAX_ID_LENGTH] for request in requests])
        traces = tuple([request.trace[:MAX_TRACE_LENGTH] for request in requests])
    meta = Infer(
        rows=tuple([request.rows for request in requests]),
        left_s=tuple([request.deadline_s - now_s for request in requests]),
        priority=first.priority,
        tails=tuple([shape[1:] for shape in first.shapes]) if batched else first.shapes,
        sizes=tuple(sizes),
        backlog_rows=backlog_rows,
        ids=ids,
        traces=traces,
    )
    return _joined(encode_frame(Kind.INFER, meta, call_id, total), chunks, total)


def check_shapes(request: TensorRequest, signature: Signature) -> InvalidRequest | None:
    """Why `request` would not make a valid frame, or None. What BYTES hold is not looked at."""
    if not len(request.shapes) == len(request.data) == len(signature.inputs):
        return InvalidRequest(f"inputs: expected {len(signature.inputs)}, got {len(request.data)}")
    for spec, shape, data in zip(signature.inputs, request.shapes, request.data, strict=True):
        if not spec.admits(shape) or (signature.batched and shape[0] != request.rows):
            rows = f" with {request.rows} rows" if signature.batched else ""
            return InvalidRequest(f"{spec.name}.shape: expected {list(spec.shape)}{rows}, got {list(shape)}")
        if spec.item_bytes and prod(shape) * spec.item_bytes != len(data):
            return InvalidRequest(f"{spec.name}: {list(shape)} of {spec.dtype} does not take {len(data)} bytes")
    return None


def decode_infer(meta: Infer, payload: Payload, signature: Signature, now_s: float, source: int = 0) -> MicroBatch:
    """The micro-batch as arrays over `payload`. Raises: FrameError if it does not fit the signature."""
    rows = meta.rows
    if not rows or len(meta.left_s) != len(rows) or (meta.ids and len(meta.ids) != len(rows)):
        raise FrameError(f"INFER: {len(rows)} requests, {len(meta.left_s)} times, {len(meta.ids)} ids")
    if meta.traces and len(meta.traces) != len(rows):
        raise FrameError(f"INFER: {len(rows)} requests, {len(meta.traces)} traces")
    if max(rows) > signature.max_rows or (not signature.batched and len(rows) != 1):
        raise FrameError(f"INFER: rows {rows} for a model of at most {signature.max_rows} rows a request")
    if any(map(isnan, meta.left_s)):
        raise FrameError("INFER: a time that is not a number")
    if not len(meta.tails) == len(meta.sizes) == len(signature.inputs):
        raise FrameError(f"INFER: {len(meta.sizes)} inputs, the model has {len(signature.inputs)}")
    total_rows = sum(rows)
    arrays: list[Array] = []
    at = 0
    for spec, tail, size in zip(signature.inputs, meta.tails, meta.sizes, strict=True):
        shape = (total_rows, *tail) if signature.batched else tail
        if not spec.admits(shape):
            raise FrameError(f"INFER: input {spec.name}: expected {list(spec.shape)}, got {list(shape)}")
        arrays.append(_array(spec, shape, payload, at, size))
        at += size + -size % ALIGNMENT
    if at != payload.size:
        raise FrameError(f"INFER: inputs take {at} bytes, the payload has {payload.size}")
    deadlines_s = tuple([now_s + left_s for left_s in meta.left_s])
    return MicroBatch(rows, deadlines_s, tuple(arrays), meta.tails, meta.priority, meta.ids, source, meta.traces)


def encode_result(
    call_id: int,
    batch: MicroBatch,
    result: MicroResult,
    signature: Signature,
    queue_rows: int,
    max_payload_bytes: int,
    ahead_rows: int = 0,
) -> list[Buffer]:
    """The frame that answers `batch`; buffers to be written, outputs not copied unless they are small.

    An engine whose outputs do not fit the signature or the rows is answered for with EngineFailed.
    """
    for error in result.errors.values():
        error.__traceback__ = None  # its frames hold the batch and lead back to it: arrays would wait for the collector
    try:
        return _encode_result(call_id, batch, result, signature, queue_rows, max_payload_bytes, ahead_rows)
    except ServingError as error:
        error.__traceback__ = None
        failed = MicroResult(None, {i: result.errors.get(i, error) for i in range(len(batch.rows))})
        failed.queue_s, failed.compute_s, failed.batch_rows = result.queue_s, result.compute_s, result.batch_rows
        return _encode_result(call_id, batch, failed, signature, queue_rows, max_payload_bytes, ahead_rows)


def _encode_result(
    call_id: int,
    batch: MicroBatch,
    result: MicroResult,
    signature: Signature,
    queue_rows: int,
    max_payload_bytes: int,
    ahead_rows: int,
) -> list[Buffer]:
    errors = result.errors
    rows = [n for i, n in enumerate(batch.rows) if i not in errors] if errors else batch.rows
    outputs: tuple[Array, ...] = ()
    if rows:
        if result.outputs is None or len(result.outputs) != len(signature.outputs):
            got = "none" if result.outputs is None else len(result.outputs)
            raise EngineFailed(f"outputs: expected {len(signature.outputs)}, the engine gave {got}")
        outputs = result.outputs
    chunks: list[Buffer] = []
    tails: list[tuple[int, ...]] = []
    sizes: list[int] = []
    splits: list[tuple[int, ...]] = []
    total = 0
    for spec, output in zip(signature.outputs, outputs, strict=False):
        tail, parts = _output(spec, output, rows, signature.batched)
        split = tuple(map(len, parts)) if spec.item_bytes == 0 else ()
        size = sum(map(len, parts))
        chunks += parts
        tails.append(tail)
        sizes.append(size)
        splits.append(split)
        total += size + _pad(chunks, size)
    if total > max_payload_bytes:
        raise TooLarge(f"outputs: {total} bytes, a replica answers with at most {max_payload_bytes}")
    meta = Result(
        failures=tuple([Failure(i, type(e).__name__, e.message[:MAX_MESSAGE_LENGTH]) for i, e in errors.items()]),
        tails=tuple(tails),
        sizes=tuple(sizes),
        splits=tuple(splits),
        queue_s=result.queue_s,
        compute_s=result.compute_s,
        batch_rows=result.batch_rows,
        queue_rows=queue_rows,
        ahead_rows=ahead_rows,
    )
    return _joined(encode_frame(Kind.RESULT, meta, call_id, total), chunks, total)


def split_result(
    meta: Result, payload: Payload, rows: Sequence[int], signature: Signature
) -> list[TensorAnswer | ServingError]:
    """Per request of the micro-batch its answer or its error. Answers are views of `payload`.

    Raises:
        FrameError: the result does not fit the micro-batch.
    """
    failures = {failure.index: error_from_wire(failure.error, failure.message) for failure in meta.failures}
    if len(failures) != len(meta.failures) or any(i >= len(rows) for i in failures):
        raise FrameError(f"RESULT: failures {sorted(failures)} of {len(rows)} requests")
    good = [n for i, n in enumerate(rows) if i not in failures] if failures else rows
    answers = _answers(meta, payload, good, signature) if good else []
    if not failures:
        return answers
    remaining = iter(answers)
    return [failures[i] if i in failures else next(remaining) for i in range(len(rows))]


def _answers(
    meta: Result, payload: Payload, rows: Sequence[int], signature: Signature
) -> list[TensorAnswer | ServingError]:
    view = payload.data
    columns: list[list[memoryview]] = []  # per output, each request's bytes
    at = 0
    if not len(meta.tails) == len(meta.sizes) == len(meta.splits) == len(signature.outputs):
        raise FrameError(f"RESULT: {len(meta.sizes)} outputs, the model has {len(signature.outputs)}")
    for spec, tail, size, split in zip(signature.outputs, meta.tails, meta.sizes, meta.splits, strict=True):
        if spec.item_bytes:
            row_bytes = prod(tail) * spec.item_bytes
            lengths: Sequence[int] = [n * row_bytes for n in rows]
        else:
            lengths = split
        ends = list(accumulate(lengths, initial=at))
        if len(lengths) != len(rows) or ends[-1] != at + size:
            raise FrameError(f"RESULT: output {spec.name}: {size} bytes for {len(rows)} requests of {sum(rows)} rows")
        columns.append([view[ends[i] : ends[i + 1]] for i in range(len(rows))])
        at += size + -size % ALIGNMENT
    if at != payload.size:
        raise FrameError(f"RESULT: outputs take {at} bytes, the payload has {payload.size}")
    tails, batched = meta.tails, signature.batched
    shapes = {n: tuple([(n, *tail) for tail in tails]) if batched else tails for n in set(rows)}
    queue_s, compute_s, batch_rows = meta.queue_s, meta.compute_s, meta.batch_rows
    data = zip(*columns, strict=True)
    return [TensorAnswer(shapes[n], d, queue_s, compute_s, batch_rows) for n, d in zip(rows, data, strict=True)]


def _array(spec: TensorSpec, shape: tuple[int, ...], payload: Payload, at: int, size: int) -> Array:
    region = payload[at : at + size]
    if region.size != size:
        raise FrameError(f"INFER: input {spec.name}: the payload ends early")
    if spec.item_bytes == 0:
        count = prod(shape)
        try:
            return decode_strings(region.data, count).reshape(shape)
        except InvalidRequest as error:
            raise FrameError(f"INFER: input {spec.name}: {error.message}") from None
    if size != prod(shape) * spec.item_bytes:
        raise FrameError(f"INFER: input {spec.name}: {list(shape)} of {spec.dtype} does not take {size} bytes")
    if spec.dtype == "BOOL":
        region = region != 0  # any byte may come; numpy's booleans must be 0 or 1
    return region.view(_NUMPY[spec.dtype]).reshape(shape)


def _output(
    spec: TensorSpec, output: Array, rows: Sequence[int], batched: bool
) -> tuple[tuple[int, ...], Sequence[Buffer]]:
    """Tail and bytes of one output: one buffer, or for BYTES one per request. Raises: EngineFailed."""
    if batched and (output.ndim == 0 or output.shape[0] != sum(rows)):
        raise EngineFailed(f"output {spec.name}: expected {sum(rows)} rows, the engine gave {list(output.shape)}")
    tail = tuple(map(int, output.shape[1:] if batched else output.shape))
    if spec.item_bytes == 0:
        return tail, _encode_strings(spec, output, rows, batched)
    if output.dtype != _NUMPY[spec.dtype]:
        raise EngineFailed(f"output {spec.name}: expected {spec.dtype}, the engine gave {output.dtype}")
    if output.size == 0:
        return tail, ()
    return tail, (np.ascontiguousarray(output).data.cast("B"),)


def _encode_strings(spec: TensorSpec, output: Array, rows: Sequence[int], batched: bool) -> list[bytes]:
    elements = output.reshape(-1).tolist()
    step = len(elements) // sum(rows) if batched else len(elements)
    try:
        ends = list(accumulate([n * step for n in rows], initial=0))
        return [encode_strings(elements[ends[i] : ends[i + 1]]) for i in range(len(rows))]
    except InvalidRequest as error:
        raise EngineFailed(f"output {spec.name}: {error.message}") from None


def _pad(chunks: list[Buffer], size: int) -> int:
    padding = -size % ALIGNMENT
    if padding:
        chunks.append(_PADDING[padding])
    return padding


def _joined(head: bytes, chunks: list[Buffer], total: int) -> list[Buffer]:
    if total <= JOIN_BYTES:
        return [b"".join((head, *chunks))]
    return [head, *chunks]
