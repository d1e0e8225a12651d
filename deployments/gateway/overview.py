"""The whole cluster at a glance, as the status page polls it: what is wanted, what runs, what its gateways counted.

Counters only grow; a reader takes the difference of two readings of the same gateway processes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cluster.documents import ModelDocument, VersionRecord
from deployments.app_names import app_name
from deployments.gateway.dispatch import Dispatcher
from deployments.gateway.membership import MEMBERSHIP, StartSeen
from deployments.metrics import SECONDS, Cell
from deployments.readings import REPLICAS, WAITING_ROWS, NodeReading


def overview(dispatcher: Dispatcher, seen: NodeReading, draining: bool) -> dict[str, Any]:
    """{"gateway", "at_s" (Unix time), "bounds_s", "models": [...], ...}, ready to be written as JSON.

    "gateway" names those whose counts these are, "silent_gateways" says how many are missing.
    """
    return {
        "gateway": ",".join(seen.gateways),
        "silent_gateways": seen.silent,
        "at_s": time.time(),
        "draining": draining,
        "bounds_s": SECONDS,
        "models": [_model(dispatcher, seen, name) for name in dispatcher.models()],
        "unknown": _summed([reading.unknown for reading in seen.readings]),
    }


def _model(dispatcher: Dispatcher, seen: NodeReading, name: str) -> dict[str, Any]:
    document = dispatcher.document(name)
    cells = seen.of_model(name)
    return {
        "name": name,
        "revision": document.revision,
        "labels": document.labels,
        "split": {arm.version: arm.share_bp for arm in document.split.arms} if document.split else {},
        "versions": [
            _version(dispatcher, document, document.versions[version], cells.get(version, []), seen)
            for version in sorted(document.versions, key=int)
        ],
    }


def _version(
    dispatcher: Dispatcher, document: ModelDocument, record: VersionRecord, cells: Sequence[Cell], seen: NodeReading
) -> dict[str, Any]:
    status = dispatcher.statuses(document.name).get(record.version)
    return {
        "version": record.version,
        "format": record.format,
        "precision": record.precision,
        "size_bytes": record.size_bytes,
        "deployed": record.deploy is not None,
        "state": status.state if status else "REGISTERED",
        "reason": status.reason if status else "",
        "replicas": status.replicas if status else 0,
        "pending": status.pending if status else 0,
        "target_replicas": status.target_replicas if status else 0,
        "connected": int(max(seen.gauge(REPLICAS, document.name, record.version), default=0)),
        "waiting_rows": int(sum(seen.gauge(WAITING_ROWS, document.name, record.version))),
        "labels": sorted(label for label, version in document.labels.items() if version == record.version),
        "starts": [_start(seen) for seen in MEMBERSHIP.starts(app_name(document.name, record.version))],
        "counts": _counts(cells),
    }


def _start(seen: StartSeen) -> dict[str, Any]:
    late_s = None if seen.seen_after_s is None else round(seen.seen_after_s, 3)
    return {
        "replica": seen.replica,
        "steps": seen.start.steps,
        "ready_s": seen.start.ready_s,
        "seen_after_s": late_s,
    }


def _counts(cells: Sequence[Cell]) -> dict[str, Any]:
    buckets = [int(sum(column)) for column in zip(*(cell.request.counts for cell in cells), strict=True)]
    return {
        "status": _summed(cells),
        "request_buckets": buckets or [0] * (len(SECONDS) + 1),
        "request_s": sum(cell.request.total for cell in cells),
        "queue_s": sum(cell.queue.total for cell in cells),
        "compute_s": sum(cell.compute.total for cell in cells),
        "batches": sum(cell.batch.count for cell in cells),
        "batch_rows": sum(cell.batch.total for cell in cells),
    }


def _summed(cells: Sequence[Cell]) -> dict[int, int]:
    """Answers by HTTP status."""
    status: dict[int, int] = {}
    for cell in cells:
        for code, count in cell.status.items():
            status[code] = status.get(code, 0) + count
    return status
