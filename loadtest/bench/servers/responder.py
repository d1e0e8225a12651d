"""Answers every request at once with the same bytes: what the generator can reach at most.

python -m loadtest.bench.servers.responder --port 8000 [--body-bytes 40]
"""

from __future__ import annotations

import asyncio
import re
import signal

import click

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Responder(asyncio.Protocol):
    """Counts bytes of each request and answers when it is whole."""

    __slots__ = ("_answer", "_missing", "_transport")

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._missing = 0
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            end = data.find(b"\r\n\r\n")
            length = _LENGTH.search(data, 0, end + 2)
            self._missing = end + 4 + (int(length[1]) if length else 0) - len(data)
        if self._missing <= 0:
            self._missing = 0
            self._transport.write(self._answer)  # type: ignore[union-attr]


async def serve(port: int, body_bytes: int) -> None:
    """Until SIGTERM or SIGINT."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % body_bytes + bytes(body_bytes)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, stop.set)
    server = await loop.create_server(lambda: Responder(answer), "127.0.0.1", port)
    print("up", server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()


@click.command()
@click.option("--port", default=0, help="0: any free one, which is printed.")
@click.option("--body-bytes", default=40, show_default=True)
def main(port: int, body_bytes: int) -> None:
    """A server that does nothing but answer."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(port, body_bytes))


if __name__ == "__main__":
    main()
