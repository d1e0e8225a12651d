from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest, TooLarge
from deployments.oip import header as header_module
from deployments.oip.header import MAX_OBJECTS, MAX_PART_BYTES, _structure, parse_header

JSON = st.recursive(
    st.integers() | st.text('a"\\[{]}', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('b"\\[{]}', max_size=3), inner, max_size=4),
)


def depth_of(value: Any) -> int:
    if isinstance(value, list | dict):
        return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def objects_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(objects_of, value.values()))
    return sum(map(objects_of, value)) if isinstance(value, list) else 0


@given(JSON, st.integers(1, 9))
def test_the_structure_of_json_is_found_whatever_its_text_holds_and_wherever_it_is_cut(value: Any, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header_module, "_SCAN_BYTES", step)
        found = _structure(json.dumps(value).encode())
    assert found == (depth_of(value), objects_of(value))


def body(**more: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]} | more.pop("tensor", {})
    return json.dumps({"inputs": [tensor], **more}).encode()


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (body(parameters={f"p{i}": 1 for i in range(MAX_PART_BYTES // 8)}), "parameters"),
        (body(outputs=[{"name": "y"}] * MAX_PART_BYTES), "outputs"),
        (body(tensor={"shape": [1] * MAX_PART_BYTES}), "inputs[0].shape"),
        (body(tensor={"parameters": {"a": "b" * MAX_PART_BYTES}}), "inputs[0].parameters"),
    ],
)
def test_what_would_become_many_objects_is_refused_by_its_length(raw: bytes, field: str) -> None:
    with pytest.raises(TooLarge, match=rf"^{field.replace('[', r'.').replace(']', '.')}: at most {MAX_PART_BYTES}"):
        parse_header(raw, 100)


def test_many_inputs_are_counted_before_they_are_made_and_braces_in_text_are_none() -> None:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "data": ["{" * (MAX_OBJECTS + 1)]}
    assert len(parse_header(json.dumps({"inputs": [tensor]}).encode(), 100).inputs) == 1
    few = {"name": "x", "datatype": "BYTES", "shape": [1]}
    with pytest.raises(TooLarge, match="objects"):
        parse_header(json.dumps({"inputs": [few] * (MAX_OBJECTS + 1)}).encode(), 100)


def test_the_place_of_a_wrong_field_is_named_through_every_part() -> None:
    for raw, place in (
        (body(tensor={"shape": [1, "a"]}), r"inputs\[0\]\.shape\[1\]: expected int"),
        (body(tensor={"name": 3}), r"inputs\[0\]\.name: expected str"),
        (body(outputs=[{"name": "y"}, {"name": 1}]), r"outputs\[1\]\.name: expected str"),
        (body(parameters=[]), r"parameters: expected object"),
    ):
        with pytest.raises(InvalidRequest, match=f"^{place}"):
            parse_header(raw, 100)
