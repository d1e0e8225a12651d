from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest, ServingError, TooLarge
from cluster.names import Target
from cluster.settings import HttpSettings
from deployments.gateway.admission import admit, without_upgrade
from deployments.gateway.exchanges import MAX_ASGI_BODY_BYTES, Exchange
from deployments.gateway.inflate import inflate
from deployments.gateway.targets import infer_target

LIMITS = HttpSettings(max_body_bytes=1 << 22, max_header_bytes=1024)


def exchange(url: bytes = b"/v2/models/m/infer", method: bytes = b"POST", **headers: bytes) -> Exchange:
    fields = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return Exchange(None, method, url, fields, True)


def status(made: Exchange, version: str = "1.1", head_bytes: int = 100) -> int | None:
    refusal = admit(made, version, head_bytes, LIMITS, infer_target)
    return refusal.status if refusal else None


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (b"/v2/models/m/infer", Target("m")),
        (b"/v2/models/m/infer?x=/a/infer", Target("m")),
        (b"/v2/models/my%2Dmodel/infer", Target("my-model")),
        (b"/v2/models/m/versions/12/infer", Target("m", version="12")),
        (b"/v2/models/m/labels/canary/infer", Target("m", label="canary")),
        (b"http://host:80/v2/models/m/infer", Target("m")),
        (b"/v2/models/m", None),
        (b"/v2/models/m/versions/infer", None),
        (b"/v2/models/m/versions/1/x/infer", None),
        (b"/v1/models/m/infer", None),
        (b"*", None),
        (b"", None),
    ],
)
def test_urls_of_inference_requests_name_their_target(url: bytes, target: Target | None) -> None:
    assert infer_target(url) == target


@pytest.mark.parametrize(
    "url",
    [b"/v2/models//infer", b"/v2/models/a%2Fb/infer", b"/v2/models/%ff/infer", b"/v2/models/m/versions/0/infer"],
)
def test_parts_that_name_nothing_are_refused(url: bytes) -> None:
    with pytest.raises(InvalidRequest):
        infer_target(url)


@given(st.binary(max_size=60))
def test_any_url_is_a_target_or_not_or_refused(tail: bytes) -> None:
    for url in (tail, b"/v2/models/" + tail + b"/infer"):
        try:
            infer_target(url)
        except ServingError:
            pass


def test_a_good_request_is_admitted_with_what_its_headers_say() -> None:
    made = exchange(content_length=b"100", content_encoding=b"GZIP", expect=b"100-Continue")
    assert status(made) is None
    assert made.target == Target("m") and made.encoding == b"gzip" and made.most_bytes == LIMITS.max_body_bytes


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (exchange(content_length=b"%d" % ((1 << 22) + 1)), 413),
        (exchange(b"/api/v1/x", content_length=b"%d" % (MAX_ASGI_BODY_BYTES + 1)), 413),
        (exchange(transfer_encoding=b"gzip, chunked"), 501),
        (exchange(content_encoding=b"zstd"), 415),
        (exchange(expect=b"more"), 417),
        (exchange(b"/v2/models/..%2f/infer"), 400),
        (exchange(**{f"a{n}": b"" for n in range(300)}), 431),
    ],
)
def test_a_body_that_is_not_wanted_is_refused_before_it_comes(made: Exchange, expected: int) -> None:
    assert status(made) == expected


def test_versions_and_header_sizes_are_bounded() -> None:
    assert status(exchange(), version="2.0") == 505
    assert status(exchange(), head_bytes=1025) == 431
    assert status(exchange(), head_bytes=1024) is None


def test_an_offer_of_another_protocol_is_taken_out_and_nothing_else() -> None:
    headers = [(b"host", b"x"), (b"upgrade", b"h2c"), (b"connection", b"Upgrade"), (b"content-length", b"3")]
    plain = without_upgrade(b"POST", b"/a", headers, close=True)
    assert plain == b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nconnection: close\r\n\r\n"


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=300))
def test_a_body_is_the_sum_of_its_pieces(pieces: list[bytes]) -> None:
    made = exchange()
    for piece in pieces:
        made.grow(piece)
        assert len(made.chunks) <= 64
    assert bytes(made.body()) == b"".join(pieces)


@given(st.binary(max_size=2000), st.integers(0, 2000))
def test_what_is_inflated_is_never_larger_than_allowed(raw: bytes, most: int) -> None:
    packed = zlib.compress(raw)
    if len(raw) > most:
        with pytest.raises(TooLarge):
            inflate(packed, b"deflate", most)
    else:
        assert inflate(packed, b"deflate", most) == raw


@given(st.binary(max_size=100), st.sampled_from([b"gzip", b"deflate"]))
def test_noise_is_not_inflated(noise: bytes, encoding: bytes) -> None:
    try:
        inflate(noise, encoding, 1000)
    except ServingError:
        pass
