"""The gateway's ASGI application: everything but inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cluster.documents import VersionStatus
from cluster.settings import Settings
from cluster.store import VersionStore
from deployments.exposition import exposition
from deployments.gateway.answers import HANDLERS, is_draining, json_response
from deployments.gateway.control import ControlEndpoints
from deployments.gateway.dispatch import Dispatcher
from deployments.gateway.inference import role_of
from deployments.gateway.models import ModelEndpoints
from deployments.gateway.openapi import openapi
from deployments.gateway.overview import overview
from deployments.gateway.siblings import Siblings
from deployments.metrics import Gauges, Metrics
from deployments.readings import ANSWERED, GRANTED, REPLICAS, WAITING_ROWS, WANTED

_PAGE = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def build_app(
    dispatcher: Dispatcher,
    metrics: Metrics,
    settings: Settings,
    store: VersionStore,
    admin_token: str,
    siblings: Siblings | None = None,
) -> Starlette:
    """The application. `HttpServer` says in each request's `state` whether the gateway drains.

    `siblings` has the node's other gateways; without them, numbers are this process's only.
    """
    node = siblings if siblings is not None else Siblings(metrics)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("draining", 503) if is_draining(request) else PlainTextResponse("success")

    async def proxy_routes(request: Request) -> Response:
        return json_response({"/": "prism"})

    async def scrape(request: Request) -> Response:
        about = {name: about for name, (about, _) in metrics.gauges.items()}
        return Response(exposition(await node.read(), about), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def no_icon(request: Request) -> Response:
        return Response(status_code=204, headers={"cache-control": "max-age=86400"})

    async def glance(request: Request) -> Response:
        seen = overview(dispatcher, await node.read(), is_draining(request))
        return json_response(seen, headers={"cache-control": "no-store"})

    async def describe(request: Request) -> Response:
        return json_response(openapi())

    app = Starlette(
        routes=[
            *ModelEndpoints(dispatcher, node).routes(),
            Route("/metrics", scrape),
            Route("/-/healthz", healthz),
            Route("/-/routes", proxy_routes),
            Route("/favicon.ico", no_icon),
            Route("/api/v1/overview", glance),
            Route("/api/v1/openapi.json", describe),
            *ControlEndpoints(store, admin_token).routes(),
            *_page_routes(),
        ],
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False
    _gauges(dispatcher, metrics)
    return app


def _page_routes() -> Iterator[Route]:
    folder = files("deployments.gateway") / "page"
    for path, (name, media_type) in _PAGE.items():
        page = Response((folder / name).read_bytes(), media_type=media_type, headers=_PAGE_HEADERS)

        async def answer(request: Request, page: Response = page) -> Response:
            return page

        yield Route("/" + path, answer)


def _gauges(dispatcher: Dispatcher, metrics: Metrics) -> None:
    def role(model: str, version: str) -> str:
        return role_of(dispatcher.document(model), version) if model in dispatcher.models() else ""

    metrics.gauge(
        WAITING_ROWS,
        "Rows that wait in this gateway for a replica",
        lambda: [(m, v, role(m, v), arm.waiting_rows) for (m, v), arm in dispatcher.arms().items()],
    )
    metrics.gauge(
        REPLICAS,
        "Replicas that take work from this gateway",
        lambda: [(m, v, role(m, v), arm.connected) for (m, v), arm in dispatcher.arms().items()],
    )
    metrics.gauge(
        ANSWERED,
        "Of these the replicas that have answered it since they connected",
        lambda: [(m, v, role(m, v), arm.answered) for (m, v), arm in dispatcher.arms().items()],
    )

    def told(read: Callable[[VersionStatus], int]) -> Gauges:
        return [
            (m, v, role(m, v), count)
            for m, v in dispatcher.arms()
            if (status := dispatcher.statuses(m).get(v)) is not None and (count := read(status))
        ]

    metrics.gauge(WANTED, "Replicas that autoscaling asked for last", lambda: told(lambda status: status.wants))
    metrics.gauge(
        GRANTED,
        "The most replicas a version may have while others need the rest; none where nothing holds it",
        lambda: told(lambda status: status.granted),
    )
