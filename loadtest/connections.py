"""HTTP/1.1 connections of a load generator: as little work per request as possible.

Whatever a generator spends on a request it cannot spend on being on time, and on a shared machine it takes it from the
server. Requests are therefore put into bytes once, and an answer is parsed in C and its body only counted. Sockets are
those of the process: gevent's under Locust.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

from gevent.monkey import get_original
from httptools import HttpParserError, HttpResponseParser

from loadtest.calls import Call

_poll = get_original("select", "poll")  # asks the kernel and never waits, so there is nothing for gevent to do
_JOINED_BYTES = 64 << 10  # up to here, one copy is cheaper than a second system call


class NoAnswer(Exception):
    """The connection was refused, reset or closed, or what came was not HTTP."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's status, its `X-Prism-Model-Version` ("" without one) and the length of its body."""

    status: int
    version: str
    body_bytes: int


class Connections:
    """Open connections to one server. The caller bounds how many requests are sent at once; each has its own."""

    def __init__(self, host: str, timeout_s: float) -> None:
        parts = urlsplit(host)
        assert parts.hostname is not None
        self.address = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        self._netloc = parts.netloc.rpartition("@")[2]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._idle: deque[socket.socket] = deque()

    def head(self, call: Call) -> bytes:
        """The request line and headers of `call`, without the empty line that ends them."""
        lines = [f"POST {call.path} HTTP/1.1", f"Host: {self._netloc}", f"Content-Length: {len(call.body)}"]
        lines += [f"{name}: {value}" for name, value in call.headers.items()]
        return "".join(f"{line}\r\n" for line in lines).encode("latin-1")

    def warm(self, count: int) -> None:
        """Open connections until `count` are idle. Raises: NoAnswer, TimeoutError."""
        while len(self._idle) < count:
            self._idle.append(self._connect())

    def post(self, head: bytes, body: bytes) -> Answer:
        """Send a request and read its answer. Raises: NoAnswer, TimeoutError."""
        connection = self._take()
        reusable = False
        try:
            if len(body) <= _JOINED_BYTES:
                connection.sendall(b"".join((head, b"\r\n", body)))
            else:
                connection.sendall(head + b"\r\n")
                connection.sendall(body)
            reader = _Reader()
            while not reader.complete:
                data = connection.recv(1 << 16)
                if not data:
                    raise NoAnswer("closed")
                reader.feed(data)
            reusable = reader.keep_alive
            return Answer(reader.status, reader.version, reader.body_bytes)
        except TimeoutError:
            raise
        except (OSError, HttpParserError) as error:
            raise NoAnswer(str(error)) from None
        finally:
            if reusable:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> socket.socket:
        while self._idle:
            connection = self._idle.pop()  # the one used last: those least used may have been closed by the server
            if _is_quiet(connection):
                return connection
            connection.close()
        return self._connect()

    def _connect(self) -> socket.socket:
        try:
            connection = socket.create_connection(self.address, self._timeout_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_hostname=self.address[0])
            return connection
        except TimeoutError:
            raise
        except OSError as error:
            raise NoAnswer(str(error)) from None


class _Reader:
    """One answer, as it arrives."""

    __slots__ = ("_parser", "body_bytes", "complete", "keep_alive", "status", "version")

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self.status = 0
        self.version = ""
        self.body_bytes = 0
        self.complete = False
        self.keep_alive = False

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 21 and name.lower() == b"x-prism-model-version":
            self.version = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status >= 200:  # anything below announces the real answer
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()


def _is_quiet(connection: socket.socket) -> bool:
    """Whether nothing has arrived on an idle connection: neither its end nor bytes that nobody asked for."""
    poll = _poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)
