"""The Open Inference Protocol's endpoints other than inference itself, which `http_protocol` answers."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.documents import ModelDocument, VersionRecord
from cluster.errors import InvalidRequest, ModelNotFound, ModelNotReady, ServingError
from cluster.names import Target, check_label, check_model, check_version
from deployments.gateway.answers import is_draining, json_response
from deployments.gateway.dispatch import Dispatcher
from deployments.gateway.siblings import Siblings
from deployments.oip import metadata
from deployments.oip.header import complaint
from deployments.readings import NodeReading


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class ModelEndpoints:
    """Answered from the routing table and what the node's gateways have counted."""

    def __init__(self, dispatcher: Dispatcher, node: Siblings) -> None:
        self._dispatcher = dispatcher
        self._node = node

    def routes(self) -> list[Route]:
        found = [
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models/stats", self.statistics),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{model}/{verb:str}", self.control, methods=["POST"]),
        ]
        for of in ("", "/versions/{version}", "/labels/{label}"):
            path = "/v2/models/{model}" + of
            found += [
                Route(path, self.model),
                Route(path + "/ready", self.model_ready),
                Route(path + "/config", self.config),
                Route(path + "/stats", self.statistics),
                Route(path + "/infer", self.infer, methods=["POST"]),
            ]
        return found

    async def server(self, request: Request) -> Response:
        return json_response(metadata.server_metadata())

    async def live(self, request: Request) -> Response:
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """200 if all models are ready, as the protocol has it ("Server Ready"); else 400."""
        ready = not is_draining(request) and all(self._serves(name) for name in self._dispatcher.models())
        return json_response({"ready": ready}, 200 if ready else 400)

    async def model_ready(self, request: Request) -> Response:
        document, version = self._addressed(request)
        if version is None:
            ready = document.split is not None and self._serves(document.name)
        else:
            ready = self._is_ready(document.name, version)
        return json_response({"name": document.name, "ready": ready}, 200 if ready else 400)

    async def model(self, request: Request) -> Response:
        document, record = self._described(request)
        return json_response(metadata.model_metadata(document, record))

    async def config(self, request: Request) -> Response:
        document, record = self._described(request)
        return json_response(metadata.model_config(document, record))

    async def statistics(self, request: Request) -> Response:
        wanted: list[tuple[ModelDocument, str | None]]
        if "model" in request.path_params:
            wanted = [self._addressed(request)]
        else:
            wanted = [(self._dispatcher.document(name), None) for name in self._dispatcher.models()]
        seen = await self._node.read()
        found = [entry for document, version in wanted for entry in _statistics(seen, document, version)]
        return json_response({"model_stats": found})

    async def index(self, request: Request) -> Response:
        body = await request.body()
        try:
            wanted = msgspec.json.decode(body, type=_IndexRequest) if body else _IndexRequest()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(complaint(error, "request")) from None
        entries = []
        for name in self._dispatcher.models():
            entries += metadata.index_entries(self._dispatcher.document(name), self._dispatcher.statuses(name))
        return json_response([entry for entry in entries if not wanted.ready or entry["state"] == "READY"])

    async def control(self, request: Request) -> Response:
        raise InvalidRequest("repository: models are deployed and undeployed through /api/v1 or the prism command")

    async def infer(self, request: Request) -> Response:
        raise ModelNotReady("inference is answered by the gateway's own protocol, which this server does not run")

    def _addressed(self, request: Request) -> tuple[ModelDocument, str | None]:
        """The model and the version in the URL, or None for the model as a whole. Raises: ServingError."""
        parts = request.path_params
        document = self._dispatcher.document(check_model(parts["model"]))
        version, label = parts.get("version"), parts.get("label")
        if version is not None:
            return document, document.record(check_version(version)).version
        if label is not None:
            return document, document.resolve(Target(document.name, label=check_label(label)))
        return document, None

    def _described(self, request: Request) -> tuple[ModelDocument, VersionRecord]:
        document, version = self._addressed(request)
        version = version or metadata.shown_version(document)
        if version is None:
            raise ModelNotFound(f"{document.name}: no version is published yet")
        return document, document.record(version)

    def _serves(self, model: str) -> bool:
        """Whether every version of the model that takes traffic is ready."""
        split = self._dispatcher.document(model).split
        return split is None or all(self._is_ready(model, version) for version in split.versions)

    def _is_ready(self, model: str, version: str) -> bool:
        try:
            arm = self._dispatcher.arm(model, version)
        except ServingError:
            return False
        status = self._dispatcher.statuses(model).get(version)
        failed = status is not None and status.state == "FAILED" and status.digest == arm.record.digest
        return arm.ready and not (failed and not arm.connected)  # one that may be woken, but cannot start


def _statistics(seen: NodeReading, document: ModelDocument, version: str | None) -> list[dict[str, Any]]:
    cells = seen.of_model(document.name, version)
    for each in [version] if version is not None else metadata.deployed(document):
        cells.setdefault(each, [])
    return metadata.model_statistics(document.name, cells)
