from __future__ import annotations

import gc
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DeadlineExceeded, EngineFailed, InvalidRequest, ServingError, TooLarge
from cluster.tensors import DTYPES, Signature, TensorSpec
from deployments.call import TensorAnswer, TensorRequest
from deployments.wire.batches import MicroBatch, MicroResult
from deployments.wire.frames import FrameError, FrameReader, Infer, Result, decode_meta
from deployments.wire.layout import check_shapes, decode_infer, encode_infer, encode_result, split_result
from deployments.wire.strings import encode_strings

MIXED = Signature(
    (TensorSpec("x", "FP32", (-1, -1)), TensorSpec("text", "BYTES", (-1, 2)), TensorSpec("flag", "BOOL", (-1,))),
    (TensorSpec("y", "FP32", (-1, -1)), TensorSpec("said", "BYTES", (-1, 2)), TensorSpec("is", "BOOL", (-1,))),
    batched=True,
    max_rows=8,
)
ALONE = Signature((TensorSpec("x", "INT64", (-1, 3)),), (TensorSpec("y", "INT64", (-1, 3)),), batched=False, max_rows=1)
BIG = 1 << 30


def frame_of(buffers):
    reader = FrameReader()
    data = b"".join(buffers)
    frames = []
    while data:
        buffer = reader.buffer()
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        frames += reader.received(count)
    (frame,) = frames
    return frame


def carried(requests, signature, now_s=0.0) -> MicroBatch:
    frame = frame_of(encode_infer(1, requests, signature.batched, 0, now_s))
    return decode_infer(decode_meta(frame, Infer), frame.payload, signature, now_s)


def answered(batch: MicroBatch, result: MicroResult, signature, limit=BIG):
    frame = frame_of(encode_result(1, batch, result, signature, 5, limit))
    meta = decode_meta(frame, Result)
    return split_result(meta, frame.payload, batch.rows, signature), meta


@st.composite
def mixed_requests(draw):
    width = draw(st.integers(0, 40))
    requests = []
    for rows in draw(st.lists(st.integers(1, 4), min_size=1, max_size=6)):
        x = np.array(draw(st.lists(st.integers(-9, 9), min_size=rows * width, max_size=rows * width)), np.float32)
        words = draw(st.lists(st.binary(max_size=6), min_size=rows * 2, max_size=rows * 2))
        flags = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
        data = (memoryview(x.tobytes()), encode_strings(words), np.array(flags).tobytes())
        shapes = ((rows, width), (rows, 2), (rows,))
        requests.append(TensorRequest(rows, shapes, data, 9.0, id=draw(st.sampled_from(["", "seven"]))))
    return requests


@settings(deadline=None)
@given(mixed_requests(), st.data())
def test_each_request_gets_back_its_own_rows_whichever_others_fail(requests, data):
    batch = carried(requests, MIXED)
    assert batch.arrays[0].shape[0] == batch.total_rows
    assert all(check_shapes(request, MIXED) is None for request in requests)
    bad = data.draw(st.sets(st.integers(0, len(requests) - 1)))
    keep = np.repeat([i not in bad for i in range(len(requests))], batch.rows)
    outputs = tuple(array[keep] for array in batch.arrays) if keep.any() else None
    outcomes, meta = answered(
        batch, MicroResult(outputs, {i: DeadlineExceeded(f"no {i}") for i in bad}, 0.1, 0.2, 7), MIXED
    )
    assert meta.queue_rows == 5
    for i, (request, outcome) in enumerate(zip(requests, outcomes, strict=True)):
        if i in bad:
            assert isinstance(outcome, DeadlineExceeded) and outcome.message == f"no {i}"
        else:
            assert isinstance(outcome, TensorAnswer)
            assert outcome.shapes == request.shapes
            assert [bytes(d) for d in outcome.data] == [bytes(d) for d in request.data]
            assert (outcome.queue_s, outcome.compute_s, outcome.batch_rows) == (0.1, 0.2, 7)


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "BYTES"])
def test_every_numeric_type_arrives_as_an_aligned_array_of_its_type(dtype):
    signature = Signature((TensorSpec("x", dtype, (-1, 3)),), (TensorSpec("y", dtype, (-1, 3)),), True, 4)
    x = np.array([[1, 0, 1]]).astype(DTYPES[dtype][0])
    batch = carried([TensorRequest(1, ((1, 3),), (x.tobytes(),), 1.0)] * 2, signature)
    (array,) = batch.arrays
    assert array.dtype == x.dtype
    assert array.tolist() == [x[0].tolist()] * 2
    assert array.flags.aligned and (dtype == "BOOL" or array.ctypes.data % 64 == 0)
    outcomes, _ = answered(batch, MicroResult((array,)), signature)
    assert [bytes(o.data[0]) for o in outcomes] == [x.tobytes()] * 2


def test_a_boolean_that_is_neither_0_nor_1_counts_as_true():
    signature = Signature((TensorSpec("x", "BOOL", (-1,)),), (TensorSpec("y", "BOOL", (-1,)),), True, 4)
    batch = carried([TensorRequest(2, ((2,),), (b"\x07\x00",), 1.0)], signature)
    assert batch.arrays[0].view(np.uint8).tolist() == [1, 0]


def test_a_model_that_is_not_batched_gets_the_whole_shape():
    x = np.arange(6, dtype=np.int64).reshape(2, 3)
    batch = carried([TensorRequest(1, ((2, 3),), (x.tobytes(),), 1.0)], ALONE)
    assert batch.arrays[0].tolist() == x.tolist()
    outcomes, _ = answered(batch, MicroResult((x[:1],)), ALONE)
    assert outcomes[0].shapes == ((1, 3),)
    assert bytes(outcomes[0].data[0]) == x[:1].tobytes()


def test_times_travel_as_what_is_left():
    now_s = time.monotonic()
    frame = frame_of(encode_infer(1, [TensorRequest(1, ((1, 3),), (bytes(24),), now_s + 2.0)], False, 9, now_s))
    meta = decode_meta(frame, Infer)
    assert meta.left_s == pytest.approx((2.0,))
    assert meta.backlog_rows == 9
    assert decode_infer(meta, frame.payload, ALONE, 100.0).deadlines_s == pytest.approx((102.0,))


def test_a_large_output_is_not_copied():
    signature = Signature((TensorSpec("x", "UINT8", (-1,)),), (TensorSpec("y", "UINT8", (-1, -1)),), True, 4)
    output = np.zeros((1, 1 << 20), np.uint8)
    buffers = encode_result(1, MicroBatch((1,), (1.0,), (), ()), MicroResult((output,)), signature, 0, BIG)
    assert np.shares_memory(np.frombuffer(buffers[1], np.uint8), output)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (None, "expected 1, the engine gave none"),
        ((np.zeros((2, 3), np.int64),) * 2, "expected 1, the engine gave 2"),
        ((np.zeros((2, 3), np.float32),), "expected INT64, the engine gave float32"),
    ],
)
def test_an_engine_that_answers_wrongly_fails_its_requests_and_nothing_else(outputs, message):
    outcomes, _ = answered(MicroBatch((1,), (1.0,), (), ()), MicroResult(outputs), ALONE)
    assert isinstance(outcomes[0], EngineFailed)
    assert message in outcomes[0].message


def test_an_engine_that_loses_rows_fails_its_requests():
    signature = Signature((TensorSpec("x", "UINT8", (-1,)),), (TensorSpec("y", "UINT8", (-1,)),), True, 4)
    result = MicroResult((np.zeros(2, np.uint8),))
    outcomes, _ = answered(MicroBatch((1, 2), (1.0, 1.0), (), ()), result, signature)
    assert all("expected 3 rows" in outcome.message for outcome in outcomes)


def test_outputs_beyond_the_frame_limit_are_too_large():
    outcomes, _ = answered(MicroBatch((1,), (1.0,), (), ()), MicroResult((np.zeros((2, 3), np.int64),)), ALONE, limit=8)
    assert isinstance(outcomes[0], TooLarge)


def test_what_an_answer_with_errors_held_is_freed_with_it():
    batch = MicroBatch((1,), (1.0,), (), ())
    result = MicroResult(None)
    try:
        raise EngineFailed("no")
    except EngineFailed as error:
        result.errors[0] = error
    kept = [weakref.ref(output := np.zeros((2, 3), np.int64))]
    gc.disable()
    try:
        encode_result(1, batch, result, ALONE, 0, BIG)
        encode_result(1, batch, MicroResult((output,)), ALONE, 0, 8)  # too large
        assert result.errors[0].__traceback__ is None
        del output
        assert kept[0]() is None
    finally:
        gc.enable()


META = Infer((1,), (1.0,), 0, ((2, 3),), (48,))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": ()},
        {"rows": (1, 1), "left_s": (1.0, 1.0)},
        {"rows": (2,)},
        {"left_s": ()},
        {"left_s": (float("nan"),)},
        {"ids": ("a", "b")},
        {"tails": ()},
        {"sizes": (48, 0)},
        {"sizes": (40,)},
        {"sizes": (1 << 61,)},
        {"tails": ((2, 4),)},
        {"tails": ((1 << 60, 3),)},
        {"tails": ((1, 3),)},
    ],
)
def test_an_infer_frame_that_does_not_fit_the_signature_is_a_frame_error(change):
    fields = {name: getattr(META, name) for name in META.__struct_fields__}
    assert decode_infer(META, np.zeros(64, np.uint8), ALONE, 0.0).rows == (1,)
    with pytest.raises(FrameError):
        decode_infer(Infer(**{**fields, **change}), np.zeros(64, np.uint8), ALONE, 0.0)


@given(st.data())
def test_any_result_metadata_splits_or_is_a_frame_error(data):
    small = st.integers(0, 70)
    meta = Result(
        failures=(),
        tails=tuple(data.draw(st.lists(st.tuples(small), max_size=3))),
        sizes=tuple(data.draw(st.lists(small, max_size=3))),
        splits=tuple(data.draw(st.lists(st.lists(small, max_size=3).map(tuple), max_size=3))),
        queue_s=0.0,
        compute_s=0.0,
        batch_rows=1,
        queue_rows=0,
    )
    payload = np.zeros(64 * data.draw(st.integers(0, 4)), np.uint8)
    try:
        outcomes = split_result(meta, payload, (1, 2), MIXED)
        assert len(outcomes) == 2
    except FrameError:
        pass


def test_failures_that_name_no_request_are_a_frame_error():
    batch = MicroBatch((1,), (1.0,), (), ())
    frame = frame_of(encode_result(1, batch, MicroResult(None, {0: ServingError("no")}), ALONE, 0, BIG))
    meta = decode_meta(frame, Result)
    assert split_result(meta, frame.payload, (1,), ALONE)[0].message == "no"
    with pytest.raises(FrameError):
        split_result(meta, frame.payload, (), ALONE)


@pytest.mark.parametrize(
    ("shapes", "data", "message"),
    [
        (((1, 2), (1, 2)), (b"", b""), "expected 3, got 2"),
        (((2, 1), (1, 2), (1,)), (bytes(8), b"", b"\1"), "x.shape: expected"),
        (((1, 1), (1, 3), (1,)), (bytes(4), b"", b"\1"), "text.shape: expected"),
        (((1, 2), (1, 2), (1,)), (bytes(4), b"", b"\1"), "does not take 4 bytes"),
    ],
)
def test_a_request_that_would_spoil_the_frame_is_named(shapes, data, message):
    error = check_shapes(TensorRequest(1, shapes, data, 1.0), MIXED)
    assert isinstance(error, InvalidRequest) and message in error.message
