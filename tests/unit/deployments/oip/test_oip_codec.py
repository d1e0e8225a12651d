from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pytest import approx

from cluster.documents import DeploySettings, VersionRecord
from cluster.errors import InvalidRequest, ServingError, TooLarge
from cluster.tensors import ANY, DTYPES, Signature, TensorSpec
from deployments.call import BATCH, INTERACTIVE, TensorAnswer
from deployments.oip.codec import InferCodec
from deployments.oip.json_tensors import tensor_from_json
from deployments.oip.request import Limits
from deployments.wire.strings import decode_strings, encode_strings

LIMITS = Limits(max_json_bytes=1 << 20, max_deadline_s=100.0)


def codec_of(
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (ANY, 2)),),
    batched: bool = True,
    labels: tuple[str, ...] = (),
) -> InferCodec:
    signature = Signature(inputs, outputs, batched, 8 if batched else 1)
    record = VersionRecord(
        "3", "u", "d", signature, "onnx", "fp32", 1, 0.0, class_labels=labels, deploy=DeploySettings()
    )
    return InferCodec("m", record, LIMITS)


X = TensorSpec("x", "FP32", (ANY, 3))
ONE = codec_of((X,))


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]} | changes


def as_json(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def refusal(body: bytes, json_length: int | None = None, codec: InferCodec = ONE) -> str:
    with pytest.raises(InvalidRequest) as caught:
        codec.decode(body, json_length, 0.0)
    return caught.value.message


def floats(data: Any) -> list[float]:
    return np.frombuffer(data, "<f4").tolist()


ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "FP16": st.floats(width=16),
    "FP32": st.floats(width=32),
    "FP64": st.floats(width=64),
}


@st.composite
def arrays(draw: st.DrawFn, name: str) -> tuple[str, np.ndarray]:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = (draw(st.integers(1, 4)), *draw(st.lists(st.integers(0, 3), max_size=3)))
    if dtype == "BYTES":
        return dtype, draw(hnp.arrays(object, shape, elements=st.binary(max_size=12), fill=st.nothing()))
    return dtype, draw(hnp.arrays(DTYPES[dtype][0], shape, elements=ELEMENTS.get(dtype)))


def bytes_of(dtype: str, array: np.ndarray) -> bytes:
    return encode_strings(array.reshape(-1)) if dtype == "BYTES" else array.tobytes()


@given(arrays("x"))
@settings(max_examples=150, deadline=None)
def test_binary_tensors_of_every_dtype_arrive_and_leave_bit_for_bit(case: tuple[str, np.ndarray]) -> None:
    dtype, array = case
    spec = TensorSpec("x", dtype, (ANY,) * array.ndim)
    codec = codec_of((spec,), (TensorSpec("y", dtype, (ANY,) * array.ndim),))
    raw = bytes_of(dtype, array)
    described = {"name": "x", "datatype": dtype, "shape": array.shape, "parameters": {"binary_data_size": len(raw)}}
    head = as_json(described, parameters={"binary_data_output": True})
    request, plan = codec.decode(head + raw, len(head), 0.0)
    assert request.shapes == (array.shape,) and bytes(request.data[0]) == raw
    encoded = codec.encode(plan, TensorAnswer(request.shapes, request.data))
    assert encoded.binary and b"".join(encoded.tensors) == raw
    output = json.loads(encoded.json)["outputs"][0]
    assert output["shape"] == list(array.shape) and output["datatype"] == dtype
    assert output["parameters"]["binary_data_size"] == len(raw)


def plain(dtype: str, array: np.ndarray) -> bool:
    if dtype in ("FP32", "FP64"):
        return bool(np.isfinite(array).all())
    return dtype != "FP16"


@st.composite
def texts(draw: st.DrawFn) -> np.ndarray:
    shape = (draw(st.integers(1, 3)), draw(st.integers(0, 3)))
    return draw(hnp.arrays(object, shape, elements=st.text(max_size=6), fill=st.nothing()))


@given(arrays("x").filter(lambda case: case[0] != "BYTES" and plain(*case)), st.booleans())
@settings(max_examples=150, deadline=None)
def test_json_tensors_arrive_and_leave_bit_for_bit(case: tuple[str, np.ndarray], flat: bool) -> None:
    dtype, array = case
    codec = codec_of((TensorSpec("x", dtype, (ANY,) * array.ndim),), (TensorSpec("y", dtype, (ANY,) * array.ndim),))
    data = array.reshape(-1).tolist() if flat else array.tolist()
    body = as_json({"name": "x", "datatype": dtype, "shape": array.shape, "data": data})
    request, plan = codec.decode(body, None, 0.0)
    assert bytes(request.data[0]) == array.tobytes()
    encoded = codec.encode(plan, TensorAnswer(request.shapes, request.data))
    assert not encoded.binary and not encoded.tensors
    back = np.array(json.loads(encoded.json)["outputs"][0]["data"], DTYPES[dtype][0])
    assert back.tobytes() == array.tobytes()


@given(texts(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_text_arrives_and_leaves_as_it_was(array: np.ndarray, flat: bool) -> None:
    codec = codec_of((TensorSpec("x", "BYTES", (ANY, ANY)),), (TensorSpec("y", "BYTES", (ANY, ANY)),))
    data = array.reshape(-1).tolist() if flat else array.tolist()
    body = json.dumps({"inputs": [{"name": "x", "datatype": "BYTES", "shape": array.shape, "data": data}]})
    request, plan = codec.decode(body.encode(), None, 0.0)
    encoded = codec.encode(plan, TensorAnswer(request.shapes, request.data))
    assert json.loads(encoded.json)["outputs"][0]["data"] == array.reshape(-1).tolist()


@given(st.binary(max_size=200), st.none() | st.integers(-5, 300))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused_and_nothing_worse(body: bytes, json_length: int | None) -> None:
    try:
        ONE.decode(body, json_length, 0.0)
    except ServingError:
        pass


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.recursive(LEAVES, lambda t: st.lists(t, max_size=4) | st.dictionaries(st.text(max_size=4), t, max_size=3))
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "z"]) | TREES,
        "datatype": st.sampled_from(sorted(DTYPES)) | TREES,
        "shape": st.lists(st.integers(-2, 4), max_size=3) | TREES,
        "data": st.lists(st.floats(width=32) | st.integers(), max_size=6) | TREES,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 30)}) | TREES,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(FIELDS, max_size=2)},
    optional={
        "id": TREES,
        "parameters": st.dictionaries(st.sampled_from(["timeout", "priority", "binary_data_output"]), TREES) | TREES,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.just("y")}, optional={"parameters": TREES})) | TREES,
    },
)


@given(st.sampled_from(sorted(DTYPES)), REQUESTS, st.binary(max_size=30))
@settings(max_examples=400, deadline=None)
def test_crooked_requests_are_refused_and_nothing_worse(dtype: str, request: Any, tail: bytes) -> None:
    codec = codec_of((TensorSpec("x", dtype, (ANY, ANY)),))
    head = json.dumps(request).encode()
    for body, json_length in ((head, None), (head + tail, len(head))):
        try:
            decoded, _ = codec.decode(body, json_length, 0.0)
        except ServingError:
            continue
        assert 1 <= decoded.rows <= 8


def test_tensors_are_views_of_the_body() -> None:
    head = as_json({"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}})
    body = bytearray(head + bytes(12))
    request, _ = ONE.decode(body, len(head), 0.0)
    body[-12:] = np.ones(3, "<f4").tobytes()
    assert floats(request.data[0]) == [1, 1, 1]


def test_binary_tensors_lie_in_the_order_of_the_request_and_come_out_in_the_models() -> None:
    a, b, c = (TensorSpec(name, "INT32", (ANY, 1)) for name in "abc")
    codec = codec_of((a, b, c))
    inputs = [
        {"name": "c", "datatype": "INT32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
        {"name": "b", "datatype": "INT32", "shape": [1, 1], "data": [2]},
        {"name": "a", "datatype": "INT32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
    ]
    head = as_json(*inputs)
    request, _ = codec.decode(head + np.array([3, 1], "<i4").tobytes(), len(head), 0.0)
    assert [int.from_bytes(bytes(part), "little") for part in request.data] == [1, 2, 3]


def test_a_raw_binary_request_has_as_many_rows_as_its_bytes_say_and_binary_outputs() -> None:
    request, plan = ONE.decode(np.arange(6, dtype="<f4").tobytes(), 0, 0.0)
    assert request.rows == 2 and request.shapes == ((2, 3),)
    assert ONE.encode(plan, TensorAnswer(((2, 2),), (bytes(16),))).binary


@pytest.mark.parametrize("size", [0, 11, 13, 12 * 9])
def test_a_raw_binary_request_must_be_whole_rows_up_to_the_most(size: int) -> None:
    assert f"12 bytes of x, got {size}" in refusal(bytes(size), 0)


def test_raw_binary_requests_are_for_one_input_of_known_size() -> None:
    two = codec_of((X, TensorSpec("z", "FP32", (ANY, 3))))
    assert "one input" in refusal(bytes(12), 0, two)
    assert "fixed size" in refusal(bytes(12), 0, codec_of((TensorSpec("x", "FP32", (ANY, ANY)),)))
    assert "fixed size" in refusal(bytes(12), 0, codec_of((TensorSpec("x", "BYTES", (ANY, 3)),)))


def test_a_model_that_is_not_batched_counts_one_row() -> None:
    codec = codec_of((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", ()),), batched=False)
    request, plan = codec.decode(as_json(tensor(shape=[3])), None, 0.0)
    assert (request.rows, request.shapes) == (1, ((3,),))
    raw, _ = codec.decode(bytes(12), 0, 0.0)
    assert raw.shapes == ((3,),)
    encoded = codec.encode(plan, TensorAnswer(((),), (np.float32(2.5).tobytes(),)))
    assert json.loads(encoded.json)["outputs"][0] == {"name": "y", "datatype": "FP32", "shape": [], "data": [2.5]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (as_json(), "inputs: expected ['x'], ['x'] missing"),
        (b"[]", "request: expected object, got array"),
        (b"", "request: input data was truncated"),
        (b"\xff", "request: JSON is malformed"),
        (b'{"id":"\xff","inputs":[]}', "request: JSON must be UTF-8"),
        (as_json(tensor(name="z")), "inputs[0].name: expected one of ['x'], got 'z'"),
        (as_json(tensor(), tensor()), "inputs[1].name: 'x' appears twice"),
        (as_json(tensor(datatype="INT8")), "inputs[0].datatype: expected FP32, got 'INT8'"),
        (as_json(tensor(shape=[1, 4])), "inputs[0].shape: expected [-1, 3], got [1, 4]"),
        (as_json(tensor(shape=[3])), "inputs[0].shape: expected [-1, 3], got [3]"),
        (as_json(tensor(shape=[-1, 3])), "inputs[0].shape: expected [-1, 3], got [-1, 3]"),
        (as_json(tensor(shape=[True, 3])), "inputs[0].shape[0]: expected int, got bool"),
        (as_json(tensor(shape=[1.0, 3])), "inputs[0].shape[0]: expected int, got float"),
        (as_json(tensor(shape=[2**63, 3])), "inputs[0].shape: expected [-1, 3], got [9223372036854775808, 3]"),
        (as_json(tensor(shape=[0, 3], data=[])), "inputs[0].shape: expected 1 to 8 rows, got 0"),
        (as_json(tensor(shape=[9, 3])), "inputs[0].shape: expected 1 to 8 rows, got 9"),
        (as_json(tensor(data=[1, 2])), "inputs[0].data: [1, 3] needs 3 values, got 2"),
        (as_json(tensor(data=[[1, 2]])), "inputs[0].data: expected values nested like [1, 3], got [1, 2]"),
        (as_json(tensor(data=[[[1, 2, 3]]])), "inputs[0].data: expected a flat list or one nested like [1, 3], got 3"),
        (as_json(tensor(shape=[2, 3], data=[[1, 2, 3], [4, 5]])), "inputs[0].data: rows must be of equal length"),
        (as_json(tensor(data=[1, 2, True])), "inputs[0].data[2]: expected float, got bool"),
        (as_json(tensor(data=[1, 2, "3"])), "inputs[0].data[2]: expected float, got str"),
        (as_json(tensor(data=[1, 2, None])), "inputs[0].data[2]: expected float, got null"),
        (as_json(tensor(data=[1, 2, 1e39])), "inputs[0].data: a value is out of the range of FP32"),
        (as_json(tensor(data=[1, 2, float("nan")])), "NaN and infinities are not JSON"),
        (as_json(tensor(parameters={"binary_data_size": 12})), "inputs[0]: expected data or parameters.binary"),
        (as_json({"name": "x", "datatype": "FP32", "shape": [1, 3]}), "inputs[0]: expected data or parameters.binary"),
        (as_json(tensor(parameters={"a": [1]})), "inputs[0].parameters[...]: expected"),
        (as_json(tensor(), id=7), "id: expected str, got int"),
        (as_json(tensor(), parameters={"timeout": "soon"}), "parameters.timeout: expected whole microseconds"),
        (as_json(tensor(), parameters={"timeout": -1}), "parameters.timeout: expected whole microseconds"),
        (as_json(tensor(), parameters={"priority": -1}), "parameters.priority: expected 0, 1"),
        (as_json(tensor(), parameters={"binary_data_output": 1}), "parameters.binary_data_output: expected true or"),
        (as_json(tensor(), outputs=[{"name": "q"}]), "outputs[0].name: expected one of ['y'], got 'q'"),
        (as_json(tensor(), outputs=[{"name": "y"}, {"name": "y"}]), "outputs[1].name: 'y' appears twice"),
        (
            as_json(tensor(), outputs=[{"name": "y", "parameters": {"classification": 0}}]),
            "outputs[0].parameters.classification: expected how many classes",
        ),
        (
            as_json(tensor(), outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
            "outputs[0].parameters.shared_memory_region: shared memory is not offered",
        ),
    ],
)
def test_a_refusal_names_the_field_what_was_expected_and_what_came(body: bytes, said: str) -> None:
    assert said in refusal(body)


@pytest.mark.parametrize(
    ("size", "tail", "said"),
    [
        (8, 8, "inputs[0]: FP32 [1, 3] needs 12 bytes, binary_data_size is 8"),
        (12, 11, "request: expected 12 bytes of binary tensors after the JSON, got 11"),
        (12, 13, "request: expected 12 bytes of binary tensors after the JSON, got 13"),
        (-1, 0, "inputs[0].parameters.binary_data_size: expected a number of bytes, got -1"),
        (True, 1, "inputs[0].parameters.binary_data_size: expected a number of bytes, got True"),
    ],
)
def test_binary_sizes_must_add_up(size: int, tail: int, said: str) -> None:
    head = as_json({"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": size}})
    assert said in refusal(head + bytes(tail), len(head))


@pytest.mark.parametrize("length", [-1, 5, 2**63])
def test_a_header_length_beyond_the_body_is_refused(length: int) -> None:
    assert f"Inference-Header-Content-Length: expected 0 to 4, got {length}" in refusal(bytes(4), length)


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("UINT8", [256]),
        ("UINT8", [-1]),
        ("INT64", [2**63]),
        ("UINT64", [2**64]),
        ("INT32", [1.5]),
        ("INT32", [1.0]),
        ("INT32", [True]),
        ("BOOL", [1]),
        ("BOOL", ["true"]),
        ("BYTES", [1]),
        ("FP64", ["1"]),
        ("FP16", [1.0]),
        ("FP64", [float("inf")]),
    ],
)
def test_no_value_is_bent_into_the_type(dtype: str, data: list[Any]) -> None:
    codec = codec_of((TensorSpec("x", dtype, (ANY, 1)),))
    said = refusal(as_json({"name": "x", "datatype": dtype, "shape": [1, 1], "data": data}), None, codec)
    assert said.startswith("inputs[0].data") or "not JSON" in said


def test_bool_bytes_are_0_or_1() -> None:
    codec = codec_of((TensorSpec("x", "BOOL", (ANY, 2)),))
    assert "BOOL elements" in refusal(b"\x00\x02", 0, codec)


@pytest.mark.parametrize("raw", [b"", b"\x01\x00", b"\x05\x00\x00\x00a", b"\x01\x00\x00\x00ab", b"\xff\xff\xff\xff"])
def test_bytes_elements_must_fill_the_tensor_exactly(raw: bytes) -> None:
    codec = codec_of((TensorSpec("x", "BYTES", (ANY, 1)),))
    described = {"name": "x", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(raw)}}
    head = as_json(described)
    assert refusal(head + raw, len(head), codec).startswith("inputs.x: ")


@pytest.mark.parametrize("levels", [150, 2_000, 400_000])
def test_deep_json_is_refused_wherever_it_is(levels: int) -> None:
    deep = b"[" * levels + b"]" * levels
    known = as_json(tensor())[:-1]
    assert "deep" in refusal(known + b',"more":' + deep + b"}")
    assert refusal(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":' + deep + b"}]}")


def test_brackets_in_text_and_wide_data_are_not_depth() -> None:
    codec = codec_of((TensorSpec("x", "BYTES", (ANY, 1)),))
    text = "[" * 500
    body = as_json({"name": "x", "datatype": "BYTES", "shape": [1, 1], "data": [text]}, note=text)
    request, _ = codec.decode(body, None, 0.0)
    assert decode_strings(request.data[0], 1)[0] == text.encode()


def test_unknown_fields_and_parameters_are_let_pass() -> None:
    body = as_json(tensor(note=1, parameters={"mine": "x"}), more={"a": [1]}, parameters={"sequence_id": 4})
    assert floats(ONE.decode(body, None, 0.0)[0].data[0]) == [1, 2, 3]


def test_more_json_or_tensors_than_allowed_is_too_large() -> None:
    with pytest.raises(TooLarge, match="JSON"):
        ONE.decode(b" " * (LIMITS.max_json_bytes + 1), None, 0.0)
    with pytest.raises(TooLarge, match="inputs"):
        ONE.decode(as_json(*[tensor()] * 300), None, 0.0)


def test_the_deadline_is_the_smallest_wish_and_never_beyond_the_most() -> None:
    body = as_json(tensor())
    assert ONE.decode(body, None, 5.0)[0].deadline_s == approx(35.0)
    assert ONE.decode(body, None, 5.0, timeout_s=2.0)[0].deadline_s == approx(7.0)
    timed = as_json(tensor(), parameters={"timeout": 500_000})
    assert ONE.decode(timed, None, 5.0, timeout_s=2.0)[0].deadline_s == approx(5.5)
    assert ONE.decode(timed, None, 5.0, timeout_s=0.2)[0].deadline_s == approx(5.2)
    assert ONE.decode(as_json(tensor(), parameters={"timeout": 10**15}), None, 5.0)[0].deadline_s == approx(105.0)


@pytest.mark.parametrize(("value", "means"), [(0, INTERACTIVE), (1, INTERACTIVE), (2, BATCH), (9, BATCH)])
def test_priorities_beyond_the_most_urgent_are_batch(value: int, means: int) -> None:
    assert ONE.decode(as_json(tensor(), parameters={"priority": value}), None, 0.0)[0].priority == means


def test_the_answer_has_the_outputs_asked_for_in_their_order_and_the_id() -> None:
    outputs = (TensorSpec("a", "FP32", (ANY, 1)), TensorSpec("b", "INT64", (ANY, 1)), TensorSpec("c", "BOOL", (ANY,)))
    codec = codec_of((X,), outputs)
    answer = TensorAnswer(((1, 1), (1, 1), (1,)), (np.float32(0.1).tobytes(), np.int64(7).tobytes(), b"\x01"))
    wanted = [{"name": "c"}, {"name": "b", "parameters": {"binary_data": True}}]
    request, plan = codec.decode(as_json(tensor(), id='q"\u00e9', outputs=wanted), None, 0.0)
    encoded = codec.encode(plan, answer, request.id)
    assert json.loads(encoded.json) == {
        "model_name": "m",
        "model_version": "3",
        "id": 'q"\u00e9',
        "outputs": [
            {"name": "c", "datatype": "BOOL", "shape": [1], "data": [True]},
            {"name": "b", "datatype": "INT64", "shape": [1, 1], "parameters": {"binary_data_size": 8}},
        ],
    }
    assert [bytes(part) for part in encoded.tensors] == [np.int64(7).tobytes()]


def test_non_finite_values_are_null_in_json_and_exact_in_binary() -> None:
    answer = TensorAnswer(((1, 2),), (np.array([np.nan, np.inf], "<f4").tobytes(),))
    _, plan = ONE.decode(as_json(tensor()), None, 0.0)
    assert json.loads(ONE.encode(plan, answer).json)["outputs"][0]["data"] == [None, None]


def test_classification_gives_the_best_per_row_with_labels() -> None:
    codec = codec_of((X,), labels=("cat", "dog"))
    body = as_json(tensor(shape=[2, 3], data=[0] * 6), outputs=[{"name": "y", "parameters": {"classification": 9}}])
    _, plan = codec.decode(body, None, 0.0)
    answer = TensorAnswer(((2, 2),), (np.array([[0.25, 0.75], [0.5, 0.5]], "<f4").tobytes(),))
    output = json.loads(codec.encode(plan, answer).json)["outputs"][0]
    assert output["shape"] == [2, 2] and output["datatype"] == "BYTES"
    assert output["data"] == ["0.750000:1:dog", "0.250000:0:cat", "0.500000:0:cat", "0.500000:1:dog"]


def test_fp16_outputs_must_be_asked_for_as_binary() -> None:
    codec = codec_of((X,), (TensorSpec("y", "FP16", (ANY, 1)),))
    assert "FP16 has no JSON form" in refusal(as_json(tensor()), None, codec)
    codec.decode(as_json(tensor(), parameters={"binary_data_output": True}), None, 0.0)


def test_bytes_outputs_that_are_no_text_are_refused_as_json() -> None:
    codec = codec_of((X,), (TensorSpec("y", "BYTES", (ANY, 1)),))
    _, plan = codec.decode(as_json(tensor()), None, 0.0)
    with pytest.raises(InvalidRequest, match=r"outputs\.y: has elements that are not UTF-8"):
        codec.encode(plan, TensorAnswer(((1, 1),), (encode_strings([b"\xff"]),)))


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_ids_are_told_apart_though_the_rest_of_the_header_is_known(separators: tuple[str, str]) -> None:
    described = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    for id in ("a", "b", "", "a", 'c"', "\u00e9", "b", "x" * 300, ""):
        named = {"id": id} if id else {}
        head = json.dumps({**named, "inputs": [described]}, separators=separators).encode()
        request, _ = ONE.decode(head + bytes(12), len(head), 0.0)
        assert request.id == id
        late = json.dumps({"inputs": [described], **named}, separators=separators).encode()
        assert ONE.decode(late + bytes(12), len(late), 0.0)[0].id == id


def test_what_is_remembered_changes_no_answer_and_stays_small() -> None:
    described = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    for n in range(300):
        head = as_json(described, parameters={"timeout": n + 1})
        values = np.full(3, n, "<f4")
        for _ in range(2):
            request, _ = ONE.decode(head + values.tobytes(), len(head), 0.0)
            assert floats(request.data[0]) == values.tolist() and request.deadline_s == approx((n + 1) / 1e6)
    assert len(ONE._templates) <= 64


def test_single_values_of_all_tensors_together_are_bounded() -> None:
    signature = Signature(
        (
            TensorSpec("s", "BYTES", (ANY, ANY)),
            TensorSpec("t", "BYTES", (ANY, ANY)),
            TensorSpec("x", "INT8", (ANY, ANY)),
        ),
        (TensorSpec("y", "FP32", (ANY, 2)),),
        True,
        8,
    )
    record = VersionRecord("3", "u", "d", signature, "onnx", "fp32", 1, 0.0, deploy=DeploySettings())
    codec = InferCodec("m", record, Limits(max_strings=4, max_json_values=5))

    def request(strings: int, values: int, binary: bool = False) -> tuple[bytes, int | None]:
        text: dict[str, Any] = {"name": "s", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]}
        more = text | {"name": "t", "shape": [1, strings - 2], "data": ["c"] * (strings - 2)}
        numbers: dict[str, Any] = {"name": "x", "datatype": "INT8", "shape": [1, values], "data": [1] * values}
        tail = b""
        if binary:
            more = {k: v for k, v in more.items() if k != "data"} | {
                "parameters": {"binary_data_size": 4 * (strings - 2)}
            }
            numbers = {k: v for k, v in numbers.items() if k != "data"} | {"parameters": {"binary_data_size": values}}
            tail = bytes(4 * (strings - 2) + values)
        head = as_json(text, more, numbers)
        return head + tail, len(head) if binary else None

    for binary in (False, True):
        codec.decode(*request(4, 5, binary), 0.0)
        with pytest.raises(TooLarge, match="at most 4 BYTES elements are accepted, got 5"):
            codec.decode(*request(5, 5, binary), 0.0)
    codec.decode(*request(4, 6, binary=True), 0.0)
    with pytest.raises(TooLarge, match="at most 5 values are accepted as JSON, got 6"):
        codec.decode(*request(4, 6), 0.0)


def test_a_list_much_longer_than_its_shape_is_refused_before_it_is_decoded() -> None:
    nonsense = b"[" + b"x," * 9999 + b"1]"  # not JSON: decoding it would say so
    spec = TensorSpec("x", "FP32", (ANY, 3))
    with pytest.raises(InvalidRequest, match=r"f: \[1, 3\] needs 3 values, got at least 10000"):
        tensor_from_json(nonsense, spec, (1, 3), "f")
    with pytest.raises(InvalidRequest, match="needs 3 values, got at least 9999"):
        tensor_from_json(b"[" + b'"\\"\\"",' * 9999 + b"]", replace(spec, dtype="BYTES"), (1, 3), "f")


def test_commas_and_quotes_in_text_are_no_values() -> None:
    text = json.dumps([',"' * 20_000, "\\" * 9999]).encode()
    data = tensor_from_json(text, TensorSpec("x", "BYTES", (ANY, 2)), (1, 2), "f")
    assert decode_strings(data, 2).tolist() == [b',"' * 20_000, b"\\" * 9999]


def test_a_header_whose_beginning_is_missing_is_refused_though_the_rest_is_known() -> None:
    codec = codec_of((X,))
    said = tensor(parameters={"binary_data_size": 12})
    del said["data"]
    rest = json.dumps({"inputs": [said]}, separators=(",", ":")).encode()[1:]
    raw = np.arange(3, dtype="<f4").tobytes()
    for head in (b'{"id":"a",' + rest, b'{"id":"b",' + rest, b"{" + rest):
        assert floats(codec.decode(head + raw, len(head), 0.0)[0].data[0]) == [0, 1, 2]
    assert "expected object" in refusal(rest + raw, len(rest), codec)
