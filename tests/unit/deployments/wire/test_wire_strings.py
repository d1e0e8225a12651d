from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from deployments.wire.strings import decode_strings, encode_strings


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_what_was_encoded_decodes_to_the_same_elements(elements: list[bytes]):
    assert decode_strings(encode_strings(elements), len(elements)).tolist() == elements


@given(st.binary(max_size=60), st.integers(0, 1 << 40))
def test_any_bytes_are_elements_or_an_invalid_request(data: bytes, count: int):
    try:
        assert encode_strings(decode_strings(data, count)) == data
    except InvalidRequest:
        pass


def test_text_is_sent_as_utf_8_and_numbers_are_refused():
    assert encode_strings(["ä"]) == b"\x02\x00\x00\x00\xc3\xa4"
    with pytest.raises(InvalidRequest, match="got int"):
        encode_strings([3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (b"\x01\x00\x00\x00a", 2, "at least 8 bytes"),
        (b"\x02\x00\x00\x00a", 1, "needs 2 bytes, 1 are left"),
        (b"\x00\x00\x00\x00a", 1, "1 bytes follow"),
        (b"\x04\x00\x00\x00aaaabb", 2, "within the length of element 1"),
    ],
)
def test_a_wrong_length_is_named(data: bytes, count: int, message: str):
    with pytest.raises(InvalidRequest, match=message):
        decode_strings(data, count)
