"""What a server says of itself and its models: metadata, configuration, statistics and the repository's index.

Source: Open Inference Protocol, "Server Metadata", "Model Metadata"; model configuration, statistics and model
repository extensions. All functions return plain values, ready to be written as JSON.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from cluster import __version__
from cluster.documents import ModelDocument, VersionRecord, VersionStatus
from cluster.tensors import TensorSpec
from deployments.metrics import Cell

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)

# Names of the protocol's best-known server, so that clients which look at them find what they expect.
_PLATFORMS = {"onnx": ("onnxruntime_onnx", "onnxruntime")}
_INDEX_STATES = {
    "READY": "READY",
    "DEGRADED": "READY",
    "ASLEEP": "READY",
    "LOADING": "LOADING",
    "DRAINING": "UNLOADING",
}

_NO_TIME = {"count": 0, "ns": 0}


def server_metadata() -> dict[str, Any]:
    return {"name": "prism", "version": __version__, "extensions": list(EXTENSIONS)}


def deployed(document: ModelDocument) -> list[str]:
    """Versions that may be asked for by number, ascending."""
    return sorted((v for v, record in document.versions.items() if record.deploy is not None), key=int)


def shown_version(document: ModelDocument) -> str | None:
    """The version a model is described by where none is named: the one with most traffic, else the newest."""
    if document.split is not None:
        return max(document.split.arms, key=lambda arm: arm.share_bp).version
    return max(deployed(document) or document.versions, key=int, default=None)


def model_metadata(document: ModelDocument, record: VersionRecord) -> dict[str, Any]:
    platform, _ = _PLATFORMS.get(record.format, (f"prism_{record.format}", record.format))
    return {
        "name": document.name,
        "versions": deployed(document),
        "platform": platform,
        "inputs": [_described(spec) for spec in record.signature.inputs],
        "outputs": [_described(spec) for spec in record.signature.outputs],
    }


def model_config(document: ModelDocument, record: VersionRecord) -> dict[str, Any]:
    """The part of a model configuration that clients read: sizes, names and types."""
    platform, backend = _PLATFORMS.get(record.format, (f"prism_{record.format}", record.format))
    batched = record.signature.batched
    return {
        "name": document.name,
        "platform": platform,
        "backend": backend,
        "version_policy": {"specific": {"versions": [int(version) for version in deployed(document)]}},
        "max_batch_size": record.signature.max_rows if batched else 0,
        "input": [_configured(spec, batched) for spec in record.signature.inputs],
        "output": [_configured(spec, batched) for spec in record.signature.outputs],
        "dynamic_batching": {},
    }


def model_statistics(model: str, cells: Mapping[str, Sequence[Cell]]) -> list[dict[str, Any]]:
    """One entry per version of `cells`; what this process has answered since it started."""
    now_s, wall_s = time.monotonic(), time.time()
    found = []
    for version in sorted(cells, key=int):
        group = cells[version]
        answered = sum(cell.successes for cell in group)
        last_s = max((cell.last_s for cell in group), default=0.0)
        queue_s = sum(cell.queue.total for cell in group)
        compute_s = sum(cell.compute.total for cell in group)
        found.append(
            {
                "name": model,
                "version": version,
                "last_inference": int((wall_s - (now_s - last_s)) * 1000) if last_s else 0,
                "inference_count": sum(cell.rows for cell in group),
                "execution_count": round(sum(cell.batch.count for cell in group)),
                "inference_stats": {
                    "success": _spent(answered, sum(cell.request.total for cell in group)),
                    "fail": _spent(sum(cell.failures for cell in group), sum(cell.failed_s for cell in group)),
                    "queue": _spent(answered, queue_s),
                    "compute_input": _NO_TIME,
                    "compute_infer": _spent(answered, compute_s),
                    "compute_output": _NO_TIME,
                    "cache_hit": _NO_TIME,
                    "cache_miss": _NO_TIME,
                },
                "batch_stats": [],
                "memory_usage": [],
            }
        )
    return found


def index_entries(document: ModelDocument, statuses: Mapping[str, VersionStatus]) -> list[dict[str, str]]:
    """One entry per published version."""
    entries = []
    for version in sorted(document.versions, key=int):
        status = statuses.get(version)
        state = _INDEX_STATES.get(status.state, "UNAVAILABLE") if status else "UNAVAILABLE"
        if document.versions[version].deploy is None and state != "UNLOADING":
            state = "UNAVAILABLE"
        entries.append(
            {"name": document.name, "version": version, "state": state, "reason": status.reason if status else ""}
        )
    return entries


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.dtype, "shape": list(spec.shape)}


def _configured(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    dtype = "STRING" if spec.dtype == "BYTES" else spec.dtype
    return {"name": spec.name, "data_type": f"TYPE_{dtype}", "dims": list(spec.shape[1:] if batched else spec.shape)}


def _spent(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
