"""Requests as ASGI and uvicorn's side of it see them."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from cluster.errors import InvalidRequest
from deployments.gateway.exchanges import Exchange


def scope_of(
    exchange: Exchange,
    server: tuple[str, int | None] | None,
    client: tuple[str, int] | None,
    scheme: str,
    state: dict[str, Any],
) -> HTTPScope:
    """Source: ASGI, "HTTP Connection Scope". Raises: InvalidRequest if the URL cannot be understood."""
    try:
        url = httptools.parse_url(exchange.url)
    except httptools.HttpParserInvalidURLError:
        raise InvalidRequest("URL: cannot be understood") from None
    raw_path = url.path or b"/"
    scope: Any = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": server,
        "client": client,
        "scheme": scheme,
        "method": exchange.method.decode("ascii"),
        "root_path": "",
        "path": urllib.parse.unquote(raw_path.decode("latin-1")),
        "raw_path": raw_path,
        "query_string": url.query or b"",
        "headers": exchange.headers,
        "state": state,
    }
    found: HTTPScope = scope
    return found


def cycle_of(
    exchange: Exchange,
    scope: HTTPScope,
    protocol: HttpToolsProtocol,
    keep_alive: bool,
    on_response: Callable[[], None],
) -> RequestResponseCycle:
    """uvicorn's side of the call, with the whole body in it; it is `exchange`'s from now on."""
    cycle = exchange.cycle = RequestResponseCycle(
        scope=scope,
        transport=protocol.transport,
        flow=protocol.flow,
        logger=protocol.logger,
        access_logger=protocol.access_logger,
        access_log=False,
        default_headers=protocol.server_state.default_headers,
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=on_response,
    )
    cycle.body = bytearray(exchange.body())
    cycle.more_body = False
    cycle.message_event.set()
    return cycle
