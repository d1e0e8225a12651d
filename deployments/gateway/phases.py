"""What a connection expects of its client."""

from __future__ import annotations

from enum import IntEnum


class Phase(IntEnum):
    """What is expected of the client."""

    IDLE = 0  # a request
    HEAD = 1  # the rest of its headers
    BODY = 2  # the rest of its body
    DEAF = 3  # nothing more: the last response is to be written
    LINGER = 4  # nothing more: it was written, the client may still be sending
    CLOSING = 5  # nothing more: the connection is closed once the client has read everything


IDLE, HEAD, BODY, DEAF, LINGER, CLOSING = Phase
