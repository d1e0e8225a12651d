"""As much of HTTP/1.1 as a load generator needs to see that an answer is whole.

A connection of the generator has one request under way at a time, so after an answer nothing may follow. Answers look
alike: what a head says is kept by its bytes, so that most answers cost one search and one lookup.
"""

from __future__ import annotations

from typing import NamedTuple

_KEPT_HEADS = 256
_MAX_HEAD_BYTES = 64 << 10
_NO_BODY = frozenset((204, 304))


class UnreadableAnswer(Exception):
    """The server sent what this reader does not understand."""


class Head(NamedTuple):
    """What the head of an answer says. `closes`: the server closes the connection after it."""

    status: int
    body_bytes: int
    closes: bool


def parse_head(raw: bytes) -> Head:
    """From the bytes before the empty line. Raises: UnreadableAnswer, also for bodies whose length is not stated."""
    line, _, rest = raw.partition(b"\r\n")
    if not line.startswith(b"HTTP/1.") or not line[9:12].isdigit():
        raise UnreadableAnswer(f"expected a status line, got {line[:60]!r}")
    status = int(line[9:12])
    fields = headers_of(rest)
    closes = fields.get("connection", "").lower() == "close" or line.startswith(b"HTTP/1.0")
    if status in _NO_BODY:
        return Head(status, 0, closes)
    length = fields.get("content-length", "")
    if not length.isdigit():
        raise UnreadableAnswer(f"expected a Content-Length, got {sorted(fields)}")
    return Head(status, int(length), closes)


def headers_of(raw: bytes) -> dict[str, str]:
    """Header fields by lower-case name, from lines that each end in CRLF but for the last. The last of a name wins."""
    found = {}
    for line in raw.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon:
            found[name.strip().lower().decode("latin-1")] = value.strip().decode("latin-1")
    return found


class AnswerReader:
    """Bytes in, one answer at a time out, whatever the pieces.

    With `keep`, `head` and `body` hold the answer that became whole last.
    """

    __slots__ = ("_heads", "_missing", "_pieces", "_start", "body", "closes", "head", "keep", "status")

    def __init__(self, heads: dict[bytes, Head] | None = None) -> None:
        self._heads: dict[bytes, Head] = {} if heads is None else heads  # may be shared between connections
        self._start = b""  # of a head that is not whole
        self._missing = 0  # bytes of the body that have not come
        self._pieces: list[bytes] = []
        self.keep = False
        self.status = 0
        self.closes = False
        self.head = b""
        self.body = b""

    def feed(self, data: bytes) -> int:
        """The status of the answer that `data` completes, or 0. Raises: UnreadableAnswer."""
        if self._missing:
            return self._more(data)
        if self._start:
            data = self._start + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _MAX_HEAD_BYTES:
                raise UnreadableAnswer(f"a head of more than {_MAX_HEAD_BYTES} bytes")
            self._start = data
            return 0
        self._start = b""
        raw = data[:end]
        head = self._heads.get(raw)
        if head is None:
            head = parse_head(raw)
            if len(self._heads) >= _KEPT_HEADS:
                self._heads.clear()
            self._heads[raw] = head
        self.status, size, self.closes = head
        if self.keep:
            self.head, self._pieces = raw, []
        here = len(data) - end - 4
        if here == size:
            if self.keep:
                self.body = data[end + 4 :]
            return self.status
        self._missing = size
        return self._more(data[end + 4 :])

    def _more(self, data: bytes) -> int:
        self._missing -= len(data)
        if self._missing < 0:
            raise UnreadableAnswer(f"{-self._missing} bytes more than the answer has")
        if self.keep:
            self._pieces.append(data)
        if self._missing:
            return 0
        if self.keep:
            self.body = b"".join(self._pieces)
            self._pieces = []
        return self.status
