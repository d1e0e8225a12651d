"""Requests as ASGI sees them."""

from __future__ import annotations

import urllib.parse
from typing import Any

import httptools
from uvicorn._types import HTTPScope

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
