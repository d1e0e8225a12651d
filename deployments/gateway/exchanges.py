"""One request on a connection and, later, its response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.errors import ServingError
from cluster.names import Target
from deployments.call import Buffer, TensorAnswer
from deployments.gateway.inference import Pending

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from deployments.gateway.receiving import Receiving


MAX_ASGI_BODY_BYTES = 1 << 20  # control calls are small
_MAX_CHUNKS = 64


class Exchange:
    """A request from its last header on.

    An inference request (`target` is set) is submitted when it is complete, and has its `response` when the answer
    comes. Any other gets an ASGI `cycle` when every response before it is written.

    Attributes:
        held_bytes: What of its body is counted by `Inference.hold`.
        keep_alive: Whether the client wants the connection for another request.
        encoding: The body's compression; "" once it is undone.
        fields: The headers by name.
        most_bytes: How large the body may be.
        since_s: When the request was complete, on `time.monotonic()`.
        response: What to write once it is this exchange's turn; None while it is not known.
    """

    __slots__ = (
        "chunks",
        "connection",
        "cycle",
        "encoding",
        "fields",
        "headers",
        "held_bytes",
        "keep_alive",
        "method",
        "most_bytes",
        "pending",
        "response",
        "since_s",
        "target",
        "url",
        "whole",
    )

    def __init__(
        self,
        connection: Receiving | None,
        method: bytes,
        url: bytes,
        headers: list[tuple[bytes, bytes]],
        keep_alive: bool,
    ) -> None:
        self.connection = connection
        self.method = method
        self.url = url
        self.headers = headers
        self.fields: dict[bytes, bytes] = {}
        self.keep_alive = keep_alive
        self.target: Target | None = None
        self.encoding = b""
        self.chunks: list[bytes] = []
        self.whole: bytearray | None = None
        self.held_bytes = 0
        self.most_bytes = MAX_ASGI_BODY_BYTES
        self.since_s = 0.0
        self.pending: Pending | None = None
        self.cycle: RequestResponseCycle | None = None
        self.response: list[Buffer] | None = None

    def grow(self, chunk: bytes) -> None:
        """More of the body. Many small pieces are kept as one: each by itself would take several times its size."""
        if self.whole is not None:
            self.whole += chunk
            return
        self.chunks.append(chunk)
        if len(self.chunks) > _MAX_CHUNKS:
            self.whole = bytearray().join(self.chunks)
            self.chunks = []

    def body(self) -> Buffer:
        """The whole body; it is not kept any longer."""
        if self.whole is not None:
            whole, self.whole = self.whole, None
            return whole
        chunks, self.chunks = self.chunks, []
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def reply(self, outcome: TensorAnswer | ServingError) -> None:
        """Where the arm brings the answer."""
        connection = self.connection
        if connection is not None:
            try:
                connection.answered(self, outcome)
            except Exception as error:
                connection.broken(error)

    def abandon(self) -> None:
        """The client is gone: nobody waits for the response."""
        connection, self.connection = self.connection, None
        cycle, pending = self.cycle, self.pending
        if cycle is not None:
            if not cycle.response_complete:
                cycle.disconnected = True
            cycle.message_event.set()
        elif connection is not None and pending is not None and self.response is None:
            connection.inference.cancelled(pending, self.since_s)
            if pending.ticket is not None:
                pending.ticket.cancel()
