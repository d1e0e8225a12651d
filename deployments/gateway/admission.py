"""Whether a request's body may come, decided by its headers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cluster.errors import ServingError
from cluster.names import Target
from cluster.settings import HttpSettings
from deployments.gateway.exchanges import Exchange
from deployments.gateway.inflate import ENCODINGS
from deployments.status import status_of

MAX_HEADERS = 256

_RARE = frozenset((b"transfer-encoding", b"content-encoding", b"expect"))
_HOP_FIELDS = (b"connection", b"upgrade", b"http2-settings")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP status, the reason, and further header lines."""

    status: int
    message: str
    more: bytes = b""


def admit(
    exchange: Exchange,
    version: str,
    head_bytes: int,
    limits: HttpSettings,
    target_of: Callable[[bytes], Target | None],
) -> Refusal | None:
    """Fill in what the headers say of `exchange`; why its body is not wanted, or None if it is.

    Args:
        version: The HTTP version the client speaks.
        head_bytes: Length of its names and values and the URL.
        target_of: The target of an inference request's URL; None for other URLs. May raise ServingError.
    """
    if head_bytes > limits.max_header_bytes or len(exchange.headers) > MAX_HEADERS:
        most = limits.max_header_bytes
        return Refusal(431, f"headers: at most {most} bytes and {MAX_HEADERS} headers are accepted")
    if version not in ("1.1", "1.0"):
        return Refusal(505, f"request: expected HTTP/1.1, got {version}")
    fields = exchange.fields = dict(exchange.headers)
    if exchange.method == b"POST":
        try:
            exchange.target = target_of(exchange.url)
        except ServingError as error:
            return Refusal(status_of(error).http, error.message)
        if exchange.target is not None:
            exchange.most_bytes = limits.max_body_bytes
    length = fields.get(b"content-length")
    if length is not None and int(length) > exchange.most_bytes:
        return Refusal(413, f"body: at most {exchange.most_bytes} bytes are accepted, got {int(length)}")
    if _RARE.isdisjoint(fields):
        return None
    if fields.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
        return Refusal(501, "Transfer-Encoding: expected chunked")
    encoding = fields.get(b"content-encoding", b"identity").lower()
    if encoding != b"identity":
        if encoding not in ENCODINGS:
            message = "Content-Encoding: expected gzip, deflate or identity"
            return Refusal(415, message, b"accept-encoding: gzip, deflate\r\n")
        exchange.encoding = encoding
    if fields.get(b"expect", b"100-continue").lower() != b"100-continue":
        return Refusal(417, "Expect: expected 100-continue")
    return None


def without_upgrade(method: bytes, url: bytes, headers: Iterable[tuple[bytes, bytes]], close: bool) -> bytes:
    """The head of the same request, as one that asks for no other protocol.

    Clients offer HTTP/2 this way; a server may ignore the offer (RFC 9110, 7.8).
    """
    lines = [b"%b %b HTTP/1.1" % (method, url)]
    lines += [b"%b: %b" % field for field in headers if field[0] not in _HOP_FIELDS]
    if close:
        lines.append(b"connection: close")
    return b"\r\n".join((*lines, b"", b""))
