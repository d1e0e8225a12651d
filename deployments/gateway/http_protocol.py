"""HTTP/1.1 connections of a gateway: inference requests answered without the ASGI round trip, all others by ASGI.

A subclass of uvicorn's httptools protocol, which keeps the socket's side, runs ASGI applications and is told by
uvicorn's server to shut down. What a request is, whose turn it is to be answered, and all limits are decided here:

- Every request is received whole, then becomes an `Exchange` at the end of `_queue`. Responses leave in the order of
  the queue. Inference requests are submitted at once, so that those of one connection share a batch; an ASGI
  application starts when everything before it has been written.
- `_phase` says what is expected of the client and `_due_s` by when. No timer is armed for it: the listener calls
  `expire` on every connection a few times a second.
- A request that cannot be received whole (too large, too slow, malformed) is answered with `Connection: close`; what
  still comes is read and dropped for a moment, since closing at once would take the answer away from a client that
  is still sending.

Of uvicorn's internals it uses what `HttpToolsProtocol.__init__` sets, `_start_asgi_task` and `RequestResponseCycle`; a
test pins the version.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial
from math import inf
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from cluster.errors import InvalidRequest, Overloaded, ServingError
from cluster.names import Target
from deployments.call import Buffer, TensorAnswer
from deployments.gateway.asgi import cycle_of, scope_of
from deployments.gateway.exchanges import Exchange
from deployments.gateway.inference import Inference
from deployments.gateway.inflate import inflate
from deployments.gateway.phases import BODY, CLOSING, DEAF, HEAD, IDLE, LINGER
from deployments.gateway.receiving import NO_ROOM, Receiving
from deployments.gateway.tracing import NO_TRACE, trace_of
from deployments.status import log_unknown, status_of

MAX_QUEUED = 64  # unanswered requests of one connection before it is no longer read
LINGER_S = 2.0


class GatewayProtocol(Receiving):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        inference: Inference,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop, inference=inference)
        self.access_log = False
        self._queue: deque[Exchange] = deque()
        self._unwritable_s = inf  # since when the client reads too slowly
        self._unwritten = 0
        self._unread = False  # the client may be sending what nobody will read

    # The transport's side.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._due_s = time.monotonic() + self._http.keep_alive_s
        if len(self.connections) > self._http.max_connections:
            self._phase = DEAF
            message = f"the gateway has its {self._http.max_connections} connections"
            transport.write(self.inference.refusal(503, message, keep=False, more=b"retry-after: 1\r\n"))
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = CLOSING
        if self._receiving is not None:
            self.inference.hold(self._receiving, 0)
            self._receiving = None
        self._parsed = None  # after an error in the parser it leads back here
        self._abandon_queue()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unwritable_s = time.monotonic()
        self._unwritten = self.transport.get_write_buffer_size()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwritable_s = inf
        if len(self._queue) < MAX_QUEUED:
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """Called by uvicorn's server: answer what was accepted, then close."""
        if self._phase is IDLE:
            if self._queue:
                self._end_with_last()
            else:
                self._close()

    def expire(self, now_s: float) -> None:
        """Act if the client has let a time limit pass."""
        if now_s - self._unwritable_s > self._http.write_timeout_s:
            unwritten = self.transport.get_write_buffer_size()
            if unwritten >= self._unwritten:
                self.transport.abort()
                return
            self._unwritable_s, self._unwritten = now_s, unwritten
        if now_s < self._due_s:
            return
        if self._phase is IDLE:
            self._close()
        elif self._phase is HEAD:
            self._refuse(408, f"headers: not complete after {self._http.header_timeout_s:g} s")
        elif self._phase is BODY:
            self._refuse(408, f"body: not complete after {self._http.body_timeout_s:g} s")
        else:
            self.transport.abort()

    # From request to response.

    def _complete(self, exchange: Exchange) -> None:
        self._receiving = None
        exchange.since_s = time.monotonic()
        queue = self._queue
        queue.append(exchange)
        self._phase = IDLE if exchange.keep_alive else DEAF
        self._due_s = inf
        if self.inference.draining:
            self._keep(exchange)
        if len(queue) >= MAX_QUEUED:
            self.flow.pause_reading()
        if exchange.encoding:
            work = self.loop.run_in_executor(None, inflate, exchange.body(), exchange.encoding, exchange.most_bytes)
            work.add_done_callback(partial(self._inflated, exchange))
        elif exchange.target is not None:
            self._submit(exchange, exchange.target, exchange.body())
        else:
            self._flush()

    def answered(self, exchange: Exchange, outcome: TensorAnswer | ServingError) -> None:
        pending = exchange.pending
        if pending is None:
            raise AssertionError("an arm replies after submit has returned")
        exchange.pending = None  # its ticket leads back here: without this, every request would wait for the collector
        keep = self._keep(exchange) if self.inference.draining else exchange.keep_alive
        self._respond(exchange, self.inference.answer(pending, outcome, exchange.since_s, keep))

    def _keep(self, exchange: Exchange) -> bool:
        """Whether the connection stays open after `exchange`: while draining, only for what was accepted behind it."""
        if self.inference.draining and self._phase is IDLE and self._queue[-1] is exchange:
            self._end_with_last()
        return exchange.keep_alive

    def _submit(self, exchange: Exchange, target: Target, body: Buffer) -> None:
        if exchange.held_bytes:
            self.inference.hold(exchange, 0)  # from here on the version's queue counts it
        try:
            exchange.pending = self.inference.submit(target, exchange.fields, body, exchange.since_s, exchange.reply)
        except Exception as error:
            trace = trace_of(exchange.fields) or NO_TRACE
            self._respond(exchange, [self.inference.failure(error, self._keep(exchange), more=trace.header)])

    def _inflated(self, exchange: Exchange, done: asyncio.Future[bytes]) -> None:
        exchange.encoding = b""
        error = done.exception()
        room = self.inference.hold(exchange, 0 if error or exchange.connection is None else len(done.result()))
        if exchange.connection is None:
            return
        if error is None and not room:
            error = Overloaded(NO_ROOM)
        if error is not None:
            self.inference.hold(exchange, 0)
            self.inference.metrics.unknown.failed(status_of(error).http, time.monotonic() - exchange.since_s)
            self._respond(exchange, [self.inference.failure(error, self._keep(exchange))])
        elif exchange.target is not None:
            self._submit(exchange, exchange.target, done.result())
        else:
            exchange.chunks.append(done.result())
            self._flush()

    def _start(self, exchange: Exchange) -> None:
        """Run the ASGI application on a request that is complete."""
        try:
            state = {"draining": self.inference.draining}
            scope = scope_of(exchange, self.server, self.client, self.scheme or "http", state)
        except InvalidRequest as error:
            self.inference.metrics.unknown.failed(400, 0.0)
            exchange.response = [self.inference.failure(error, self._keep(exchange))]
            return
        cycle = cycle_of(exchange, scope, self, self._keep(exchange), partial(self._completed, exchange))
        self._start_asgi_task(cycle, self.app)

    def _completed(self, exchange: Exchange) -> None:
        """The ASGI application has sent its whole response."""
        if not self._queue or self._queue[0] is not exchange or exchange.cycle is None:
            return
        exchange.keep_alive = exchange.cycle.keep_alive
        exchange.response = []
        self._flush()

    def _respond(self, exchange: Exchange, response: list[Buffer]) -> None:
        exchange.response = response
        if self._queue and self._queue[0] is exchange:
            self._flush()

    def _flush(self) -> None:
        """Write every response whose turn it is, and start the ASGI application whose turn it is."""
        queue, transport = self._queue, self.transport
        while queue:
            exchange = queue[0]
            if exchange.response is None and exchange.target is None and exchange.cycle is None:
                if exchange.encoding:
                    return
                self._start(exchange)
            response = exchange.response
            if response is None:
                return
            queue.popleft()
            if exchange.held_bytes:
                self.inference.hold(exchange, 0)
            if len(response) == 1:
                transport.write(response[0])
            elif response:
                transport.writelines(response)
            self.server_state.total_requests += 1
            if not exchange.keep_alive:
                self._finish()
                return
            if self.flow.read_paused and len(queue) < MAX_QUEUED and not self.flow.write_paused:
                self.flow.resume_reading()
        if self._phase is IDLE:
            self._due_s = time.monotonic() + self._http.keep_alive_s

    # The end of a connection.

    def _has_unanswered(self) -> bool:
        return bool(self._queue)

    def _refuse(self, status: int, message: str, more: bytes = b"") -> None:
        self.inference.metrics.unknown.failed(status, 0.0)
        self._last_words(self.inference.refusal(status, message, keep=False, more=more))

    def _refuse_with(self, error: ServingError) -> None:
        self.inference.metrics.unknown.failed(status_of(error).http, 0.0)
        self._last_words(self.inference.failure(error, keep=False))

    def _last_words(self, response: bytes) -> None:
        exchange, self._receiving = self._receiving, None
        if exchange is None:
            exchange = Exchange(self, b"", b"", [], False)
        self.inference.hold(exchange, 0)
        exchange.chunks, exchange.whole = [], None
        exchange.keep_alive = False
        self._missing = 0
        self._phase = DEAF
        self._due_s = inf
        self._unread = True
        self._queue.append(exchange)
        self._respond(exchange, [response])

    def _finish(self) -> None:
        """The last response is written: close, but not in the face of a client that is still sending."""
        self._abandon_queue()
        if not self._unread or self.transport.is_closing() or not self.transport.can_write_eof():
            self._close()
            return
        self._phase = LINGER
        self._due_s = time.monotonic() + LINGER_S
        self.flow.resume_reading()
        self.transport.write_eof()

    def _end_with_last(self) -> None:
        """Accept no more: the last request in the queue is the connection's last."""
        last = self._queue[-1]
        last.keep_alive = False
        if last.cycle is not None:
            last.cycle.keep_alive = False
        self._phase = DEAF
        self._due_s = inf
        self._unread = True  # it does not know yet

    def _abandon_queue(self) -> None:
        queue, self._queue = self._queue, deque()
        for exchange in queue:
            if not exchange.encoding:  # a body that is being inflated is held until that is done
                self.inference.hold(exchange, 0)
            exchange.abandon()

    def broken(self, error: BaseException) -> None:
        log_unknown(error, "in a connection, which is closed")
        self._phase = CLOSING
        self.transport.abort()

    def _close(self) -> None:
        self._phase = CLOSING
        self._due_s = time.monotonic() + self._http.write_timeout_s
        self.transport.close()
