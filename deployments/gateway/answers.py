"""JSON answers and errors of the gateway's ASGI application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cluster.errors import ServingError, Unauthorized
from deployments.status import error_body, message_of, retry_after, status_of


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    return Response(body, status, dict(headers or {}), "application/json")


def is_draining(request: Request) -> bool:
    """Whether the gateway is on its way out."""
    return bool(getattr(request.state, "draining", False))


async def on_serving_error(request: Request, error: Exception) -> Response:
    """The protocol's error object, with what the error's status asks for."""
    status = status_of(error)
    headers = {}
    wait = retry_after(status)
    if wait is not None:
        headers["retry-after"] = wait
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return Response(error_body(message_of(error)), status.http, headers, "application/json")


async def on_http_error(request: Request, error: Exception) -> Response:
    """404, 405 and the like, as JSON."""
    if not isinstance(error, HTTPException):
        raise error
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return Response(error_body(detail), error.status_code, error.headers, "application/json")


async def on_unknown_error(request: Request, error: Exception) -> Response:
    """What is answered to anything else; the server logs the error itself."""
    return Response(error_body("internal error"), 500, None, "application/json")


HANDLERS: Mapping[Any, Any] = {
    ServingError: on_serving_error,
    HTTPException: on_http_error,
    Exception: on_unknown_error,
}
