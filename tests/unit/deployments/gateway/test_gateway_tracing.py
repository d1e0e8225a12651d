import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.gateway.tracing import MAX_REQUEST_ID, Trace, trace_of

PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_trace_and_a_request_id_are_read_and_the_id_is_echoed():
    found = trace_of({b"traceparent": PARENT, b"x-request-id": b"order-17"})
    assert found == Trace(PARENT.decode(), "order-17", b"x-request-id: order-17\r\n")


def test_each_counts_without_the_other():
    assert trace_of({b"traceparent": PARENT}) == Trace(PARENT.decode(), "", b"")
    assert trace_of({b"x-request-id": b"a"}) == Trace("", "a", b"x-request-id: a\r\n")
    assert trace_of({}) is None


def test_a_later_version_may_say_more():
    later = b"01" + PARENT[2:] + b"-what-comes"
    assert trace_of({b"traceparent": later}) == Trace(later.decode(), "", b"")


@pytest.mark.parametrize(
    "parent",
    [
        b"",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + b"-more",
        b"ff" + PARENT[2:],
        PARENT.replace(b"4bf92f3577b34da6a3ce929d0e0e4736", b"0" * 32),
        PARENT.replace(b"00f067aa0ba902b7", b"0" * 16),
        PARENT + b"\n",
        b"\xff" * 55,
    ],
)
def test_a_malformed_traceparent_is_as_none(parent):
    assert trace_of({b"traceparent": parent}) is None


@given(st.binary(max_size=MAX_REQUEST_ID + 10))
def test_no_request_id_can_break_the_response_or_the_log(raw):
    found = trace_of({b"x-request-id": raw})
    if found is not None:
        assert found.header == b"x-request-id: " + raw + b"\r\n"
        assert raw.isascii() and raw.decode().isprintable() and b" " not in raw and len(raw) <= MAX_REQUEST_ID
    else:
        assert not raw or len(raw) > MAX_REQUEST_ID or any(not 0x21 <= byte <= 0x7E for byte in raw)
