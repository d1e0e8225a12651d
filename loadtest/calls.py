"""The HTTP requests a load test sends, ready to go: path, headers, body. One function per protocol."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlsplit

from cluster.errors import InvalidRequest, ModelNotFound, ModelNotReady, OperatorError
from cluster.names import Target
from cluster.tensors import Signature, TensorSpec
from loadtest.scenario import LoadTarget
from loadtest.tensors import Array, elements, from_sample, generated, read_sample

Fetch = Callable[[str], Any]  # path -> decoded JSON

# Straight to the server, as the load goes: a proxy from the environment may not know this machine's addresses.
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@dataclass(frozen=True, slots=True)
class Call:
    """One request, sent again and again by POST. `name` groups it in Locust's own tables."""

    name: str
    path: str
    headers: dict[str, str]
    body: bytes


def calls_for(target: LoadTarget, fetch: Fetch, seed: int) -> tuple[Call, ...]:
    """The bodies of `target`, built from what the server says about the model.

    Raises: InvalidRequest, ModelNotFound, OperatorError.
    """
    if target.protocol not in PROTOCOLS:
        raise InvalidRequest(f"targets.protocol: expected one of {', '.join(PROTOCOLS)}, got {target.protocol!r}")
    return PROTOCOLS[target.protocol](target, fetch, seed)


def oip_http(target: LoadTarget, fetch: Fetch, seed: int) -> tuple[Call, ...]:
    """Open Inference Protocol v2 over HTTP: JSON, its binary tensor extension, or a raw binary body."""
    if not target.model:
        raise InvalidRequest("targets.model: missing; name a model in the scenario or with --model")
    name = Target.parse(target.model)
    path = oip_path(name)
    inputs = _inputs(fetch(path), target.model)
    if target.sample:
        sets = from_sample(inputs, read_sample(target.sample), target.rows, target.variants)
    else:
        sets = generated(target.model, inputs, target.shapes, target.rows, target.variants, seed)
    encode = {"json": _json_body, "binary": _binary_body, "raw": _raw_body}[target.encoding]
    calls = []
    for tensors in sets:
        body, headers = encode(inputs, tensors)
        calls.append(Call(str(name), f"{path}/infer", headers, body))
    return tuple(calls)


PROTOCOLS: dict[str, Callable[[LoadTarget, Fetch, int], tuple[Call, ...]]] = {"oip-http": oip_http}


def oip_path(name: Target) -> str:
    """The model's resource: `/v2/models/NAME`, `.../versions/VERSION`, `.../labels/LABEL`."""
    tail = f"/versions/{name.version}" if name.version else f"/labels/{name.label}" if name.label else ""
    return f"/v2/models/{quote(name.model)}{tail}"


def fetch_json(host: str, timeout_s: float = 10.0) -> Fetch:
    """A function that gets JSON from `host`. It raises ModelNotFound (404), ModelNotReady (503) and OperatorError."""

    def fetch(path: str) -> Any:
        try:
            with open_url(host + path, timeout=timeout_s) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            message = _error_of(error)
            if error.code == 404:
                raise ModelNotFound(f"{host}{path}: {message}") from None
            if error.code == 503:
                raise ModelNotReady(f"{host}{path}: {message}") from None
            raise OperatorError(f"{host}{path}: HTTP {error.code}: {message}") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise OperatorError(f"host: nothing answers at {host} ({reason})") from None
        except ValueError:
            raise OperatorError(f"{host}{path}: expected JSON; is this an Open Inference Protocol server?") from None

    return fetch


def signature_metadata(signature: Signature) -> dict[str, Any]:
    """What a model's metadata says about its inputs, from its signature."""
    return {
        "inputs": [{"name": s.name, "datatype": s.dtype, "shape": list(s.shape)} for s in signature.inputs],
    }


def post(host: str, call: Call, timeout_s: float = 60.0) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower-case names) and body of one answer. Raises: OperatorError if there is none."""
    request = urllib.request.Request(host + call.path, data=call.body, headers=call.headers)  # noqa: S310  (check_host)
    try:
        with open_url(request, timeout=timeout_s) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {}, error.read()
    except (OSError, HTTPException) as error:
        raise OperatorError(f"host: nothing answers at {host} ({getattr(error, 'reason', error)})") from None


def check_host(host: str) -> str:
    """`host` as `http://HOST:PORT` without a trailing slash. Raises: InvalidRequest."""
    parts = urlsplit(host)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"host: expected a URL such as http://127.0.0.1:8000, got {host!r}")
    return host.rstrip("/")


def _inputs(metadata: Any, model: str) -> tuple[TensorSpec, ...]:
    try:
        return tuple(
            TensorSpec(item["name"], item["datatype"], tuple(int(d) for d in item["shape"]))
            for item in metadata["inputs"]
        )
    except (KeyError, TypeError, ValueError):
        raise InvalidRequest(f"model {model}: its metadata does not list inputs with name, datatype, shape") from None


def _json_body(inputs: tuple[TensorSpec, ...], tensors: Mapping[str, Array]) -> tuple[bytes, dict[str, str]]:
    for spec in inputs:
        if spec.dtype == "FP16":
            raise InvalidRequest(f"targets.encoding: input {spec.name!r} is FP16, which has no JSON form; use binary")
        if spec.dtype == "BYTES" and not _is_text(tensors[spec.name]):
            raise InvalidRequest(f"targets.encoding: input {spec.name!r} is not UTF-8 text; use binary")
    body = {
        "inputs": [
            {
                **_head(spec, tensors[spec.name]),
                "data": [item.decode() for item in elements(tensors[spec.name])]
                if spec.dtype == "BYTES"
                else tensors[spec.name].reshape(-1).tolist(),
            }
            for spec in inputs
        ]
    }
    return json.dumps(body, separators=(",", ":")).encode(), {"Content-Type": "application/json"}


def _binary_body(inputs: tuple[TensorSpec, ...], tensors: Mapping[str, Array]) -> tuple[bytes, dict[str, str]]:
    """Binary tensor data extension: a JSON header, then every tensor's bytes in the same order."""
    parts = [_bytes(spec, tensors[spec.name]) for spec in inputs]
    header = {
        "inputs": [
            {**_head(spec, tensors[spec.name]), "parameters": {"binary_data_size": len(part)}}
            for spec, part in zip(inputs, parts, strict=True)
        ],
        "parameters": {"binary_data_output": True},
    }
    raw = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([raw, *parts]), {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(raw)),
    }


def _raw_body(inputs: tuple[TensorSpec, ...], tensors: Mapping[str, Array]) -> tuple[bytes, dict[str, str]]:
    """Raw binary request: one input's bytes and nothing else; the server takes the shape from the model."""
    if len(inputs) != 1:
        raise InvalidRequest(f"targets.encoding: raw needs a model with one input, this one has {len(inputs)}")
    spec = inputs[0]
    if spec.row_bytes() is None:
        raise InvalidRequest(f"targets.encoding: raw needs an input of fixed size, {spec.name!r} is {_shown(spec)}")
    return _bytes(spec, tensors[spec.name]), {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": "0",
    }


def _shown(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"


def _is_text(array: Array) -> bool:
    try:
        return all(item.decode() is not None for item in elements(array))
    except UnicodeDecodeError:
        return False


def _head(spec: TensorSpec, array: Array) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(array.shape), "datatype": spec.dtype}


def _bytes(spec: TensorSpec, array: Array) -> bytes:
    if spec.dtype == "BYTES":
        return b"".join(len(item).to_bytes(4, "little") + item for item in elements(array))
    return array.tobytes()


def _error_of(error: urllib.error.HTTPError) -> str:
    try:
        message = json.loads(error.read(4096))["error"]
        return str(message.get("message", message) if isinstance(message, dict) else message)
    except (ValueError, KeyError, TypeError, OSError, AttributeError):
        return error.reason
