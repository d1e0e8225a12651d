"""Compressed request bodies, with a bound on what comes out."""

from __future__ import annotations

import zlib

from cluster.errors import InvalidRequest, TooLarge
from deployments.call import Buffer

ENCODINGS = (b"gzip", b"x-gzip", b"deflate")

_GZIP, _ZLIB, _RAW = 31, 15, -15  # window bits as zlib wants them


def inflate(body: Buffer, encoding: bytes, max_bytes: int) -> bytes:
    """`body` decompressed; `encoding` is one of `ENCODINGS`. Never makes more than `max_bytes` bytes.

    Raises: TooLarge; InvalidRequest if the body is not what `encoding` says.
    """
    if encoding != b"deflate":
        return _inflate(body, _GZIP, max_bytes)
    # "deflate" is zlib's format (RFC 9110, 8.4.1.2), yet some clients send the bare stream.
    zlib_header = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _inflate(body, _ZLIB if zlib_header else _RAW, max_bytes)


def _inflate(body: Buffer, window: int, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(window)
    try:
        out = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest(f"body: cannot be decompressed: {error}") from None
    if len(out) > max_bytes:
        raise TooLarge(f"body: at most {max_bytes} bytes are accepted, decompressed it has more")
    if not stream.eof:
        raise InvalidRequest("body: the compressed data ends early")
    if stream.unused_data:
        raise InvalidRequest("body: data follows the compressed data")
    return out
