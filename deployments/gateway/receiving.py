"""The receiving half of a connection: bytes in, whole requests out, within the limits on size and time.

A request whose head came before is recognised by its bytes and goes past the parser (`heads`); any other is read by
httptools. Both end in `_complete`. What cannot be received whole ends in `_refuse` or `_refuse_with`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from asyncio import AbstractEventLoop
from math import inf
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from cluster.errors import Overloaded, ServingError, TooLarge
from deployments.call import TensorAnswer
from deployments.gateway.admission import admit, without_upgrade
from deployments.gateway.exchanges import Exchange
from deployments.gateway.heads import Head, head_end
from deployments.gateway.inference import Inference
from deployments.gateway.phases import BODY, DEAF, HEAD, IDLE

NO_ROOM = "requests that have arrived or are arriving take too much memory"


class Receiving(HttpToolsProtocol):
    """Reads requests from one connection; a subclass answers them.

    `_phase` says what is expected of the client and `_due_s` by when.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: AbstractEventLoop | None = None,
        *,
        inference: Inference,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.inference = inference
        self._http = inference.http
        self._known = inference.heads.by_bytes
        self._phase = IDLE
        self._due_s = inf
        self._receiving: Exchange | None = None
        self._missing = 0  # bytes of a recognised request's body that are still to come, past the parser
        self._parsed: Exchange | None = None  # the last request whose head the parser read
        self._head_bytes = 0
        self._requests = 0

    @abstractmethod
    def _complete(self, exchange: Exchange) -> None:
        """The request is whole."""

    @abstractmethod
    def _refuse(self, status: int, message: str, more: bytes = b"") -> None:
        """Answer a request that will not be received, once it is its turn, and let it be the last."""

    @abstractmethod
    def _refuse_with(self, error: ServingError) -> None:
        """Likewise."""

    @abstractmethod
    def _has_unanswered(self) -> bool:
        """Whether requests that came before are still to be answered."""

    @abstractmethod
    def answered(self, exchange: Exchange, outcome: TensorAnswer | ServingError) -> None:
        """The answer to a request that was submitted."""

    @abstractmethod
    def broken(self, error: BaseException) -> None:
        """A fault of ours: nobody knows what is still to be written, so the connection ends here."""

    def data_received(self, data: bytes) -> None:
        if self._phase is IDLE or self._missing:
            data = self._past_parser(data)
            if not data:
                return
        if self._phase >= DEAF:
            return
        begins = data if self._phase is IDLE else b""
        requests = self._requests
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserCallbackError as error:
                self.broken(error.__context__ or error)
                return
            except httptools.HttpParserError as error:
                if self._phase < DEAF:
                    self._refuse(400, f"request: not HTTP/1.1: {str(error)[:100]}")
                return
        parsed, self._parsed = self._parsed, None
        if begins and parsed is not None and self._requests == requests + 1 and self._phase <= BODY:
            received = parsed.held_bytes if parsed is self._receiving else int(parsed.fields.get(b"content-length", 0))
            self.inference.heads.learn(begins, parsed, received)
        if self._phase is HEAD:
            if requests == self._requests:
                self._head_bytes += len(data)
                if self._head_bytes > self._http.max_header_bytes:
                    self._refuse(431, f"headers: at most {self._http.max_header_bytes} bytes are accepted")
                    return
            if self._due_s == inf:
                self._due_s = time.monotonic() + self._http.header_timeout_s
        elif self._phase is BODY and self._due_s == inf:
            self._due_s = time.monotonic() + self._http.body_timeout_s

    # Past the parser.

    def _past_parser(self, data: bytes) -> bytes:
        """Take the requests that `data` begins with and whose heads are known; what is left for the parser."""
        while data:
            if self._missing:
                piece = data[: self._missing]
                self._missing -= len(piece)
                self.on_body(piece)
                data = data[len(piece) :]
                if not self._missing:
                    self.on_message_complete()
            elif self._phase is IDLE:
                end = head_end(data)
                head = self._known.get(data[:end])
                if head is None or self.inference.draining:
                    break
                data = self._recognised(head, data, end)
            else:
                break
        return data

    def _recognised(self, head: Head, data: bytes, end: int) -> bytes:
        """Begin the request whose `head` ends at `end`; what follows what was taken of `data`."""
        self._requests += 1
        exchange = Exchange(self, b"POST", head.url, head.headers, True)
        exchange.fields = head.fields
        exchange.target = head.target
        exchange.most_bytes = head.length
        last = end + head.length
        if last <= len(data):
            exchange.chunks = [data[end:last]]
            self._complete(exchange)
            return data[last:]
        self._receiving = exchange
        self._missing = head.length
        self._phase = BODY
        self._due_s = time.monotonic() + self._http.body_timeout_s
        return data[end:]

    # The parser's side.

    def on_message_begin(self) -> None:
        if self._phase < DEAF:
            self.url = b""
            self.headers = []
            self._head_bytes = 0
            self._requests += 1
            self._phase = HEAD
            self._due_s = inf

    def on_url(self, url: bytes) -> None:
        if self._phase is HEAD:
            self._head_bytes += len(url)
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is HEAD:  # trailers are dropped
            self._head_bytes += len(name) + len(value)
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        if self._phase is not HEAD or parser.should_upgrade():
            return
        version = parser.get_http_version()
        keep_alive = version == "1.1" and parser.should_keep_alive() and not self.inference.draining
        exchange = Exchange(self, parser.get_method(), self.url, self.headers, keep_alive)
        self._receiving = self._parsed = exchange
        self._phase = BODY
        self._due_s = inf
        refusal = admit(exchange, version, self._head_bytes, self._http, self.inference.target)
        if refusal is not None:
            self._refuse(refusal.status, refusal.message, refusal.more)
        elif b"expect" in exchange.fields and not self._has_unanswered() and version == "1.1":
            # Behind other responses it would be taken for theirs; a client sends its body anyway after a while.
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        exchange = self._receiving
        if exchange is None:
            return
        exchange.grow(body)
        full = not self.inference.hold(exchange, exchange.held_bytes + len(body))
        if exchange.held_bytes > exchange.most_bytes:
            self._refuse_with(TooLarge(f"body: at most {exchange.most_bytes} bytes are accepted"))
        elif full:
            self._refuse_with(Overloaded(NO_ROOM))

    def on_message_complete(self) -> None:
        if self._receiving is not None:
            self._complete(self._receiving)

    def _without_upgrade(self, rest: bytes) -> bytes:
        """The request that asked for another protocol once more, as one that does not, and what came behind it.

        The parser stops at such a request, and a new one goes on.
        """
        if self._phase is not HEAD:
            return b""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(405, "CONNECT: not offered")
            return b""
        self.parser = httptools.HttpRequestParser(self)
        # The offer belongs into a connection's first request; closing after a later one bounds the work.
        return without_upgrade(method, self.url, self.headers, close=self._requests > 1) + rest
