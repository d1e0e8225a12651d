from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.documents import DeploySettings, VersionRecord
from cluster.errors import ServingError, TooLarge
from cluster.tensors import ANY, Signature, TensorSpec
from deployments.oip import codec as codec_module
from deployments.oip.codec import InferCodec
from deployments.oip.json_forms import JsonForms
from deployments.oip.request import Limits

SIGNATURE = Signature((TensorSpec("x", "FP32", (ANY, 2)),), (TensorSpec("y", "FP32", (ANY, 2)),), True, 8)
RECORD = VersionRecord("1", "u", "d", SIGNATURE, "onnx", "fp32", 1, 0.0, deploy=DeploySettings())
PLAIN = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'


def fresh() -> InferCodec:
    return InferCodec("m", RECORD, Limits(max_json_bytes=1 << 16))


def meaning(codec: InferCodec, body: bytes) -> Any:
    """All that a client could tell from the answer."""
    try:
        request, plan = codec.decode(body, None, 0.0)
    except ServingError as error:
        return type(error).__name__, error.message
    data = [bytes(memoryview(part).cast("B")) for part in request.data]
    return request.rows, request.shapes, data, request.deadline_s, request.priority, request.id, plan.outputs


def parses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every request that is parsed as a whole."""
    found: list[int] = []
    parse = codec_module.parse_header

    def counted(raw: Any, max_depth: int) -> Any:
        found.append(len(raw))
        return parse(raw, max_depth)

    monkeypatch.setattr(codec_module, "parse_header", counted)
    return found


def test_of_a_request_that_came_before_only_the_values_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = parses(monkeypatch)
    codec = fresh()
    codec.decode(PLAIN, None, 0.0)
    request, _ = codec.decode(PLAIN.replace(b"[1,2]}", b"[ 3.5 , -4e0 ]}"), None, 0.0)
    assert np.frombuffer(request.data[0], "<f4").tolist() == [3.5, -4.0]
    assert len(parsed) == 1
    codec.decode(PLAIN.replace(b"[1,2],", b"[2,2],").replace(b"[1,2]}", b"[1,2,3,4]}"), None, 0.0)
    assert len(parsed) == 2, "another shape is another form"


values = st.one_of(
    st.just("[1,2]"),
    st.lists(st.floats(-10, 10), max_size=5).map(json.dumps),
    st.sampled_from(["[[1,2]]", "[[1],[2]]", "null", "7", "[1,2", "[1,2]]", "[true,2]", "[1e999,1]", '["a","b"]', ""]),
    st.sampled_from(
        ['[1,2],"data":[3,4]', '[1,2],"parameters":{"data":[5,6]}', '[1,2],"extra":[9]', '[1,2]}],"id":"i"']
    ),
)
before = st.sampled_from(
    [
        '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":',
        '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data": ',
        '{"x":{"data":[8,8]},"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":',
        '{"id":"a","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":',
        '{"id":"\\"data\\":","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":',
        '{"inputs":[{"shape":[1,2],"d\\u0061ta":[6,6],"name":"x","datatype":"FP32","data":',
    ]
)
behind = st.sampled_from(
    [
        "}]}",
        ' } ] , "parameters" : {"binary_data_output":true} }',
        '}],"outputs":[{"name":"y"}]}',
        ',"data":[7,7]}]}',
        ',"d\\u0061ta":[7,7]}]}',
        '}],"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[4,4]}]}',
        '}],"parameters":{"timeout":1000000,"priority":3}}',
    ]
)


@given(st.lists(st.tuples(before, values, behind).map("".join), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_a_codec_that_remembers_answers_as_one_that_does_not(bodies: list[str]) -> None:
    remembering = fresh()
    for body in bodies:
        assert meaning(remembering, body.encode()) == meaning(fresh(), body.encode())


@pytest.mark.parametrize(
    "behind",
    [
        ',"data":[7,7]}]}',
        ',"d\\u0061ta":[7,7]}]}',
        '}],"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[7,7]}]}',
    ],
)
def test_the_last_of_two_equal_fields_counts_also_the_next_time(behind: str) -> None:
    head = '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":'
    codec = fresh()
    for first in ("[7,7]", "[1,2]", "[7,7]"):
        request, _ = codec.decode((head + first + behind).encode(), None, 0.0)
        assert np.frombuffer(request.data[0], "<f4").tolist() == [7, 7]


def test_a_field_of_that_name_elsewhere_is_not_taken_for_the_values() -> None:
    head = '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data" :[1,2]}],"extra":{"data":'
    codec = fresh()
    for elsewhere in ("[1,2]", "[3,4]"):
        request, _ = codec.decode((head + elsewhere + "}}").encode(), None, 0.0)
        assert np.frombuffer(request.data[0], "<f4").tolist() == [1, 2]


def test_text_beyond_the_limit_is_refused_though_its_form_is_known() -> None:
    codec = fresh()
    codec.decode(PLAIN, None, 0.0)
    with pytest.raises(TooLarge):
        codec.decode(PLAIN.replace(b"[1,2]}", b"[1,%b2]}" % (b" " * (1 << 16))), None, 0.0)


def test_what_is_kept_is_bounded_and_holds_no_values() -> None:
    codec = fresh()
    for n in range(200):
        codec.decode(PLAIN.replace(b'{"inputs', b'{"n%d":1,"inputs' % n), None, 0.0)
        codec.decode(PLAIN[:-1] + b',"n%d":1}' % n, None, 0.0)
    forms: JsonForms = codec._forms
    assert len(forms._forms) <= 64 and max(map(len, forms._forms.values())) <= 4
    assert all(template.data == (None,) for kept in forms._forms.values() for _, template in kept)
