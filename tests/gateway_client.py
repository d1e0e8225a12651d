"""A raw HTTP client, and a gateway's server with fake routes to try it on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gateway_fakes import FakeRoutes, serving

ROW = np.arange(4, dtype="<f4")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Says what it was asked; `/slow` takes its time, `/bad` fails."""
    message = await receive()
    if scope["path"] == "/slow":
        await asyncio.sleep(0.02)
    if scope["path"] == "/bad":
        raise RuntimeError("no")
    said = b"%b %b %b" % (scope["method"].encode(), scope["path"].encode(), message["body"])
    head = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]}
    await send(head)
    await send({"type": "http.response.body", "body": said})


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def values(self) -> list[float]:
        json_length = int(self.headers["inference-header-content-length"])
        return np.frombuffer(self.body[json_length:], "<f4").tolist()

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"])


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def answer(self) -> Answer:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await asyncio.wait_for(self.reader.readexactly(int(headers.get("content-length", "0"))), 20)
        return Answer(int(head[0].split()[1]), headers, body)

    async def closed(self) -> bool:
        return await asyncio.wait_for(self.reader.read(), 20) == b""


def infer(values: Any = ROW, path: bytes = b"/v2/models/m/infer", *headers: bytes) -> bytes:
    body = np.asarray(values, "<f4").tobytes()
    fields = (b"Host: x", b"Inference-Header-Content-Length: 0", b"Content-Length: %d" % len(body), *headers)
    return b"POST %b HTTP/1.1\r\n%b\r\n\r\n%b" % (path, b"\r\n".join(fields), body)


def get(path: bytes, *headers: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\n%b\r\n\r\n" % (path, b"\r\n".join((b"Host: x", *headers)))


def scenario(**http: Any) -> Callable[[Callable[..., Awaitable[None]]], Callable[[], Awaitable[None]]]:
    """Run the test with a client connected to a server with these settings, its routes and itself."""

    def decorate(test: Callable[..., Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            await play(test, **http)

        run.__name__ = test.__name__
        return run

    return decorate


async def play(test: Callable[..., Awaitable[None]], **http: Any) -> None:
    routes = FakeRoutes()
    async with serving(app, routes, **http) as (server, port):
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        client.server, client.port = server, port  # type: ignore[attr-defined]
        try:
            await test(client, routes)
        finally:
            client.writer.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)
