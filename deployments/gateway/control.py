"""The control API: an operator's verbs over HTTP, for whoever has the admin token.

Every call runs in a thread, since the version store blocks. A change may carry `If-Match: REVISION`: it is then made
to that revision of the model's document or, with 409 and the present document, not at all.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar, get_type_hints

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cluster import operations
from cluster.documents import AuditEntry, DeploySettings, ModelDocument
from cluster.errors import InvalidRequest, ModelNotFound, ServingError, StaleRevision, Unauthorized
from cluster.names import Target, check_label, check_model, check_version
from cluster.splits import TrafficSplit
from cluster.store import VersionStore
from deployments.gateway.answers import json_response
from deployments.oip.header import complaint
from deployments.status import error_body, status_of

PREFIX = "/api/v1"
_THREADS = 4


class _Change(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    by: str = "api"
    reason: str = ""


class Deploy(_Change):
    """Have a version served. Without `version`, the newest. `settings` changes single fields of how it is served."""

    version: str | None = None
    settings: dict[str, Any] = {}


class Undeploy(_Change):
    """Have a version served no longer. With `force`, traffic and labels it has go elsewhere or away."""

    version: str
    force: bool = False


class Split(_Change):
    """Divide traffic: percent by version, adding up to 100."""

    percent: dict[str, float]


class Promote(_Change):
    """Give a version all traffic and the label `stable`."""

    version: str


class Rollback(_Change):
    """Put traffic back as it was before the latest step, or as at a revision."""

    to_revision: int | None = None


class Scale(_Change):
    """Change the bounds of a version's replicas."""

    version: str
    min_replicas: int | None = None
    max_replicas: int | None = None


class Label(_Change):
    """Put a label on a version or, without `version`, take it away."""

    label: str
    version: str | None = None


_SETTINGS = msgspec.defstruct(
    "DeploySettings",
    [(name, kind, None) for name, kind in get_type_hints(DeploySettings).items() if name != "attempt"],
)
"""What a change may name of DeploySettings: types without rules, for these hold between settings of which it may name
one only."""

C = TypeVar("C", bound=_Change)
Verb = Callable[[VersionStore, str, Any, dict[str, Any]], ModelDocument]


def _deploy(store: VersionStore, model: str, c: Deploy, common: dict[str, Any]) -> ModelDocument:
    target = Target(model, version=None if c.version is None else check_version(c.version))
    return operations.deploy(store, target, overrides=_settings(c.settings), **common)


def _undeploy(store: VersionStore, model: str, c: Undeploy, common: dict[str, Any]) -> ModelDocument:
    return operations.undeploy(store, _target(model, c.version), force=c.force, **common)


def _split(store: VersionStore, model: str, c: Split, common: dict[str, Any]) -> ModelDocument:
    text = ",".join(f"{version}={percent:.10g}" for version, percent in c.percent.items())
    return operations.split(store, model, TrafficSplit.parse(text), **common)


def _promote(store: VersionStore, model: str, c: Promote, common: dict[str, Any]) -> ModelDocument:
    return operations.promote(store, _target(model, c.version), **common)


def _rollback(store: VersionStore, model: str, c: Rollback, common: dict[str, Any]) -> ModelDocument:
    return operations.rollback(store, model, to_revision=c.to_revision, **common)


def _scale(store: VersionStore, model: str, c: Scale, common: dict[str, Any]) -> ModelDocument:
    target = _target(model, c.version)
    return operations.scale(store, target, min_replicas=c.min_replicas, max_replicas=c.max_replicas, **common)


def _label(store: VersionStore, model: str, c: Label, common: dict[str, Any]) -> ModelDocument:
    check_label(c.label)
    if c.version is None:
        return operations.remove_label(store, model, c.label, **common)
    return operations.set_label(store, _target(model, c.version), c.label, **common)


VERBS: dict[str, tuple[type[_Change], Verb]] = {
    "deploy": (Deploy, _deploy),
    "undeploy": (Undeploy, _undeploy),
    "split": (Split, _split),
    "promote": (Promote, _promote),
    "rollback": (Rollback, _rollback),
    "scale": (Scale, _scale),
    "label": (Label, _label),
}


class ControlEndpoints:
    """`admin_token` is compared in constant time and never logged; an empty one lets nobody in."""

    def __init__(self, store: VersionStore, admin_token: str) -> None:
        self._store = store
        self._token = admin_token.encode()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="control")

    def routes(self) -> list[Route]:
        return [
            Route(f"{PREFIX}/models", self._guarded(self.models)),
            Route(f"{PREFIX}/models/{{model}}", self._guarded(self.model)),
            Route(f"{PREFIX}/models/{{model}}/history", self._guarded(self.history)),
            *(
                Route(f"{PREFIX}/models/{{model}}/{verb}", self._guarded(self._changing(verb)), methods=["POST"])
                for verb in VERBS
            ),
        ]

    async def models(self, request: Request) -> Response:
        def read() -> list[dict[str, Any]]:
            found = []
            for name in self._store.models():
                try:
                    found.append(_summary(self._store.read(name)))
                except ModelNotFound:  # removed since it was listed
                    continue
            return found

        return json_response({"models": await self._run(read)})

    async def model(self, request: Request) -> Response:
        name = check_model(request.path_params["model"])

        def read() -> tuple[ModelDocument, dict[str, Any]]:
            document = self._store.read(name)
            return document, {version: asdict(status) for version, status in self._store.statuses(name).items()}

        document, statuses = await self._run(read)
        return json_response({"document": asdict(document), "statuses": statuses}, headers=_etag(document))

    async def history(self, request: Request) -> Response:
        name = check_model(request.path_params["model"])
        limit = request.query_params.get("limit", "100")
        if not limit.isdecimal() or len(limit) > 6:
            raise InvalidRequest(f"limit: expected a whole number, got {limit[:40]!r}")
        entries = await self._run(lambda: self._store.history(name, int(limit)))
        return json_response({"entries": [_entry(entry) for entry in entries]})

    def _changing(self, verb: str) -> Callable[[Request], Awaitable[Response]]:
        kind, act = VERBS[verb]

        async def change(request: Request) -> Response:
            name = check_model(request.path_params["model"])
            wanted = _decoded(await request.body(), kind)
            common: dict[str, Any] = {"by": wanted.by, "reason": wanted.reason, "expect_revision": _if_match(request)}
            try:
                document = await self._run(lambda: act(self._store, name, wanted, common))
            except StaleRevision as error:
                return await self._stale(name, error)
            return json_response({"document": asdict(document)}, headers=_etag(document))

        return change

    async def _stale(self, name: str, error: StaleRevision) -> Response:
        """409 with what the other writer left."""
        try:
            current = await self._run(lambda: self._store.read(name))
        except ServingError:
            return Response(error_body(error.message), status_of(error).http, None, "application/json")
        return json_response({"error": error.message, "current": asdict(current)}, 409, _etag(current))

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            # Compared before anything else is looked at, and as bytes: the time says nothing about the token.
            same = hmac.compare_digest(token.strip().encode(), self._token)
            if not same or scheme.lower() != "bearer" or not self._token:
                raise Unauthorized("Authorization: expected 'Bearer TOKEN' with the admin token")
            return await endpoint(request)

        return answer

    async def _run(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _target(model: str, version: str) -> Target:
    return Target(model, version=check_version(version))


def _settings(raw: dict[str, Any]) -> dict[str, Any]:
    """`raw`, of known names and right types; whether its values go with the others is for the change itself to say.

    Raises: InvalidRequest, naming the field.
    """
    for name in raw:
        if name not in _SETTINGS.__struct_fields__:
            known = ", ".join(_SETTINGS.__struct_fields__)
            raise InvalidRequest(f"settings.{name}: unknown; expected one of {known}")
    try:
        found = msgspec.convert(raw, _SETTINGS)
    except msgspec.ValidationError as error:
        raise InvalidRequest(complaint(error, "settings")) from None
    return {name: getattr(found, name) for name in raw}


def _decoded(body: bytes, kind: type[C]) -> C:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(complaint(error, "request")) from None


def _if_match(request: Request) -> int | None:
    value = request.headers.get("if-match")
    if value is None or value.strip() == "*":
        return None
    text = value.strip().removeprefix("W/").strip('"')
    if not text.isdecimal() or len(text) > 15:
        raise InvalidRequest(f"If-Match: expected a revision such as 7, got {value[:40]!r}")
    return int(text)


def _etag(document: ModelDocument) -> dict[str, str]:
    return {"etag": f'"{document.revision}"'}


def _summary(document: ModelDocument) -> dict[str, Any]:
    return {
        "name": document.name,
        "revision": document.revision,
        "versions": sorted(document.versions, key=int),
        "split": {arm.version: arm.share_bp for arm in document.split.arms} if document.split else {},
        "labels": document.labels,
    }


def _entry(entry: AuditEntry) -> dict[str, Any]:
    return {
        "revision": entry.revision,
        "operation": entry.operation,
        "by": entry.by,
        "at_s": entry.at_s,
        "reason": entry.reason,
        "document": asdict(entry.document),
    }
