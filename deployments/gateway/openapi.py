"""The control API as an OpenAPI 3.1 document, made from the types that decode its requests."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from cluster import __version__
from cluster.documents import AuditEntry, ModelDocument, VersionStatus
from deployments.gateway.control import PREFIX, VERBS

_REF = "#/components/schemas/{name}"


@cache
def openapi() -> dict[str, Any]:
    """The document. It does not change while the process lives."""
    kinds: list[Any] = [kind for kind, _ in VERBS.values()]
    _, schemas = msgspec.json.schema_components([*kinds, ModelDocument, VersionStatus, AuditEntry], ref_template=_REF)
    schemas["Error"] = {
        "type": "object",
        "properties": {"error": {"type": "string"}},
        "required": ["error"],
    }
    paths: dict[str, Any] = {
        f"{PREFIX}/overview": {
            "get": _operation("overview", "What is wanted, what runs and what was counted; needs no token", open_=True)
        },
        f"{PREFIX}/openapi.json": {"get": _operation("openapi", "This document; needs no token", open_=True)},
        f"{PREFIX}/models": {"get": _operation("models", "All models, in short")},
        f"{PREFIX}/models/{{model}}": {
            "parameters": [_MODEL],
            "get": _operation("model", "A model's document and its versions' statuses"),
        },
        f"{PREFIX}/models/{{model}}/history": {
            "parameters": [_MODEL],
            "get": _operation("history", "Changes of a model, newest first")
            | {"parameters": [{"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1}}]},
        },
    }
    for verb, (kind, _) in VERBS.items():
        about = (kind.__doc__ or verb).split(". ")[0].rstrip(".")
        paths[f"{PREFIX}/models/{{model}}/{verb}"] = {
            "parameters": [_MODEL],
            "post": _operation(verb, about)
            | {
                "parameters": [_IF_MATCH],
                "requestBody": {"required": True, "content": _json(_REF.format(name=kind.__name__))},
            },
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Prism control API", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer"}},
        },
    }


_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "description": "Make the change only to this revision",
    "schema": {"type": "string"},
}


def _json(ref: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": ref}}}


def _operation(name: str, summary: str, open_: bool = False) -> dict[str, Any]:
    failed = {"description": "Refused; `error` says why", "content": _json(_REF.format(name="Error"))}
    return {
        "operationId": name,
        "summary": summary,
        "security": [] if open_ else [{"admin": []}],
        "responses": {
            "200": {"description": "Done", "content": {"application/json": {"schema": {"type": "object"}}}},
            "default": failed,
        },
    }
