"""What a client says of itself in headers so that one request can be found in several programs' logs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_REQUEST_ID = 128

# Source: W3C Trace Context, 3.2.2: version 00, and what later versions must begin with; all zeros are no ids.
_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[\x21-\x7e]{0,128})?"
)
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_REQUEST_ID)


@dataclass(frozen=True, slots=True)
class Trace:
    """`parent` is the traceparent, `request_id` the client's; each "" if it gave none or one that is malformed.

    `header` is the line that echoes the request id, b"" if there is none.
    """

    parent: str
    request_id: str
    header: bytes


NO_TRACE = Trace("", "", b"")


def trace_of(headers: Mapping[bytes, bytes]) -> Trace | None:
    """From headers by lower-case name. A malformed one is as none: it must not fail a request."""
    parent, request_id = headers.get(b"traceparent", b""), headers.get(b"x-request-id", b"")
    if _TRACEPARENT.fullmatch(parent) is None or (parent.startswith(b"00") and len(parent) != 55):
        parent = b""
    if _REQUEST_ID.fullmatch(request_id) is None:
        request_id = b""
    if not parent and not request_id:
        return None
    header = b"x-request-id: %b\r\n" % request_id if request_id else b""
    return Trace(parent.decode(), request_id.decode(), header)
