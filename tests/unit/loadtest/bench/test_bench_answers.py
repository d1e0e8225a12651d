import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.bench.answers import AnswerReader, Head, UnreadableAnswer, parse_head

ANSWER = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello"


def reader(keep=True):
    made = AnswerReader()
    made.keep = keep
    return made


@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
def test_an_answer_cut_anywhere_is_whole_with_its_last_byte(cut):
    made = reader()
    assert made.feed(ANSWER[:cut]) == 0
    assert made.feed(ANSWER[cut:]) == 200
    assert (made.body, made.head) == (b"hello", ANSWER[: ANSWER.index(b"\r\n\r\n")])


def test_an_answer_in_single_bytes_is_whole_with_its_last_byte():
    made = reader()
    statuses = [made.feed(ANSWER[i : i + 1]) for i in range(len(ANSWER))]
    assert statuses == [0] * (len(ANSWER) - 1) + [200]
    assert made.body == b"hello"


@given(
    st.lists(st.tuples(st.integers(200, 599), st.binary(max_size=50)), min_size=1, max_size=5),
    st.integers(1, 40),
    st.booleans(),
)
def test_answers_one_after_another_are_told_apart_whatever_the_pieces(answers, step, keep):
    made, found = reader(keep), []
    for status, body in answers:
        status = 200 if status in (204, 304) else status
        raw = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body
        for at in range(0, len(raw), step):
            if done := made.feed(raw[at : at + step]):
                assert at + step >= len(raw)
                found.append((done, made.body if keep else b""))
    assert found == [(200 if s in (204, 304) else s, b if keep else b"") for s, b in answers]


def test_the_body_is_not_kept_unless_asked_for():
    made = reader(keep=False)
    assert made.feed(ANSWER) == 200
    assert made.body == b""


def test_an_answer_without_a_body_is_whole_with_its_head():
    assert reader().feed(b"HTTP/1.1 204 No Content\r\n\r\n") == 204
    assert reader().feed(b"HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n") == 429


def test_bytes_after_an_answer_are_refused():
    with pytest.raises(UnreadableAnswer, match="3 bytes more"):
        reader().feed(ANSWER + b"abc")


def test_a_body_of_unknown_length_is_refused():
    with pytest.raises(UnreadableAnswer, match="Content-Length"):
        reader().feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")


def test_what_is_not_http_is_refused():
    with pytest.raises(UnreadableAnswer, match="status line"):
        reader().feed(b"SSH-2.0\r\n\r\n")


def test_a_head_without_end_is_refused():
    made = reader()
    with pytest.raises(UnreadableAnswer, match="head"):
        for _ in range(100):
            made.feed(b"x" * 1000)


@pytest.mark.parametrize(
    ("raw", "closes"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nConnection: Close", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length:1", True),
    ],
)
def test_whether_a_server_closes_is_read_from_the_head(raw, closes):
    assert parse_head(raw) == Head(200, 1, closes)


def test_heads_kept_for_lookup_are_bounded():
    heads = {}
    made = AnswerReader(heads)
    for n in range(2000):
        assert made.feed(b"HTTP/1.1 200 OK\r\nX: %d\r\nContent-Length: 0\r\n\r\n" % n) == 200
    assert len(heads) <= 256
