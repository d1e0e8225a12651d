"""The request path's parts, timed one by one: codec, wire frames, batching policy, the gateway without its sockets.

An entry point: with `micro_gateway` and `hop` the only module of `loadtest` that looks inside the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cluster.costs import CostCurve
from cluster.documents import DeploySettings, VersionRecord
from cluster.policy.arrival import Arrivals
from cluster.policy.batch import BatchPolicy, Waiting
from cluster.tensors import ANY, Signature, TensorSpec
from loadtest.bench.answers import headers_of
from loadtest.bench.formats import FORMATS, request_bytes
from loadtest.bench.micro_gateway import CONNECTIONS, gateway_call
from loadtest.bench.work import INPUT, OUTPUT, WORKS, Work

if TYPE_CHECKING:
    from deployments.call import TensorRequest

REPEATS = 5
ANSWER = 10  # values of an answer
COSTS = CostCurve.of({1: 0.0002, 8: 0.0004, 64: 0.002})


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of CPU per call: the median and the least of a few repeats."""

    name: str
    call_us: float
    least_us: float
    calls: int


def measure(seconds: float) -> list[Timing]:
    """Everything, `seconds` per function."""
    return [time_calls(name, call, seconds) for name, call in calls().items()]


def time_calls(name: str, call: Callable[[], object], seconds: float) -> Timing:
    """Time `call` in `REPEATS` repeats of as many calls as make about `seconds` together."""
    count = 1
    while (took_s := _run_s(call, count)) < seconds / REPEATS / 2:
        count *= 2
    found = [1e6 * took_s / count, *(1e6 * _run_s(call, count) / count for _ in range(REPEATS - 1))]
    return Timing(name, median(found), min(found), REPEATS * count)


def _run_s(call: Callable[[], object], count: int) -> float:
    started_s = time.process_time()
    for _ in repeat(None, count):
        call()
    return time.process_time() - started_s


def calls() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    return {**_codec_calls(), **_wire_calls(), **_hop_calls(), **_policy_calls(), **_gateway_calls()}


def show(timings: list[Timing], console: Console) -> None:
    table = Table("", "µs a call", "least", title="One call", title_justify="left")
    for timing in timings:
        table.add_row(timing.name, f"{timing.call_us:.2f}", f"{timing.least_us:.2f}")
    console.print(table)


def signature_of(work: Work) -> Signature:
    """Of a work's model, with an answer of `ANSWER` values."""
    return Signature(
        (TensorSpec(INPUT, "FP32", (ANY, *work.shape)),),
        (TensorSpec(OUTPUT, "FP32", (ANY, ANSWER)),),
        batched=True,
        max_rows=work.max_batch_rows,
    )


def _codec_calls() -> dict[str, Callable[[], object]]:
    from deployments.call import TensorAnswer
    from deployments.oip.codec import InferCodec
    from deployments.oip.request import Limits

    found: dict[str, Callable[[], object]] = {}
    for work in WORKS.values():
        record = VersionRecord("1", "", "0" * 64, signature_of(work), "onnx", "fp32", 0, 0.0, costs=COSTS)
        codec = InferCodec(work.model, record, Limits())
        row = np.random.default_rng(0).standard_normal(work.shape, dtype=np.float32)
        answer = TensorAnswer(((1, ANSWER),), (row.ravel()[:ANSWER].tobytes(),))
        for name in FORMATS:
            if name not in work.formats:
                continue
            head, _, body = request_bytes(name, "/", 1, row).partition(b"\r\n\r\n")
            length = headers_of(head).get("inference-header-content-length")
            json_length = None if length is None else int(length)
            decode = partial(codec.decode, body, json_length, 0.0)
            _, plan = decode()
            found[f"decode {work.name} {name} ({_size(len(body))})"] = decode
            if work.name == "T":
                found[f"encode {work.name} {name}"] = partial(codec.encode, plan, answer)
    return found


def _wire_calls() -> dict[str, Callable[[], object]]:
    from deployments.call import TensorRequest
    from deployments.wire.batches import MicroResult
    from deployments.wire.frames import FrameReader, Infer, Result, decode_meta
    from deployments.wire.layout import decode_infer, encode_infer, encode_result, split_result

    reader = FrameReader()  # one for a connection's whole life, as in the server

    def read(raw: bytes) -> Any:
        at = 0
        while True:
            room = reader.buffer()
            piece = raw[at : at + len(room)]
            room[: len(piece)] = piece
            at += len(piece)
            if frames := reader.received(len(piece)):
                return frames[0]

    found: dict[str, Callable[[], object]] = {}
    for name, count in (("T", 1), ("T", 64), ("M", 16), ("E", 8)):
        work = WORKS[name]
        signature = signature_of(work)
        data = np.zeros(work.shape, np.float32).tobytes()
        requests: list[TensorRequest] = [TensorRequest(1, ((1, *work.shape),), (data,), 30.0) for _ in range(count)]
        encode = partial(encode_infer, 1, requests, True, 0, 0.0)
        raw = b"".join(encode())
        frame = read(raw)
        meta = decode_meta(frame, Infer)
        batch = decode_infer(meta, frame.payload, signature, 0.0)
        outputs = (np.zeros((count, ANSWER), np.float32),)
        answer = partial(encode_result, 1, batch, MicroResult(outputs), signature, 0, 1 << 30)
        answered = read(b"".join(answer()))
        result = decode_meta(answered, Result)
        label = f"{name}, {count} {'request' if count == 1 else 'requests'}"
        found[f"wire: encode frame ({label})"] = encode
        found[f"wire: read frame ({label}, {_size(len(raw))})"] = partial(read, raw)
        found[f"wire: decode frame ({label})"] = partial(_decode_infer, frame, signature)
        found[f"wire: encode answer ({label})"] = answer
        found[f"wire: split answer ({label})"] = partial(split_result, result, answered.payload, batch.rows, signature)
    return found


def _decode_infer(frame: Any, signature: Signature) -> object:
    from deployments.wire.frames import Infer, decode_meta
    from deployments.wire.layout import decode_infer

    return decode_infer(decode_meta(frame, Infer), frame.payload, signature, 0.0)


def _hop_calls() -> dict[str, Callable[[], object]]:
    from loadtest.bench.hop import BODY_BYTES, Hop

    hop = Hop()
    return {
        f"hop: {_size(BODY_BYTES)} through the socket": hop.through_socket,
        f"hop: {_size(BODY_BYTES)} through shared memory": hop.through_memory,
    }


def _policy_calls() -> dict[str, Callable[[], object]]:
    policy = BatchPolicy(64, costs=COSTS)
    queues = {waiting: [Waiting(i, 1, 0.0, 30.0, 0, ((64,),)) for i in range(waiting)] for waiting in (1, 64, 1024)}
    found: dict[str, Callable[[], object]] = {
        f"policy: decide, {waiting} waiting": partial(policy.decide, queue, 0.1) for waiting, queue in queues.items()
    }
    two = [Waiting(i, 1, 0.0, 30.0, 0, ((64,),), i % 2) for i in range(4)]
    found["policy: decide, 4 of 2 sources waiting"] = partial(policy.decide, two, 0.1)
    found["policy: predict"] = partial(policy.predict_s, 100, 1)
    found["policy: in time at all, 2 replicas"] = partial(Arrivals(64, COSTS.run_s).needs_s, [0.001, 0.002], 100, 1)
    return found


def _gateway_calls() -> dict[str, Callable[[], object]]:
    work = WORKS["T"]
    record = VersionRecord(
        "1", "", "0" * 64, signature_of(work), "onnx", "fp32", 0, 0.0, deploy=DeploySettings(), costs=COSTS
    )
    return {
        f"gateway without sockets: {CONNECTIONS} requests (T {name})": gateway_call(record, name, work.shape)
        for name in work.formats
    }


def _size(count: int) -> str:
    return f"{count} B" if count < 10_000 else f"{count / 1e3:.0f} KB"
