"""What each error means to a client: the one table from `ServingError` to HTTP and gRPC."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import orjson

from cluster import errors as e

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0  # queues are short and bounded: what was full is likely to have drained by then


@dataclass(frozen=True, slots=True)
class Status:
    """An HTTP status, the name of a gRPC status code, and whether trying again later may help."""

    http: int
    grpc: str
    retry: bool = False


INTERNAL = Status(500, "INTERNAL")

STATUS: Mapping[type[BaseException], Status] = {
    e.InvalidRequest: Status(400, "INVALID_ARGUMENT"),
    e.ModelNotFound: Status(404, "NOT_FOUND"),
    e.ModelNotReady: Status(503, "UNAVAILABLE", retry=True),
    e.Overloaded: Status(429, "RESOURCE_EXHAUSTED", retry=True),
    e.DeadlineExceeded: Status(504, "DEADLINE_EXCEEDED"),
    e.Cancelled: Status(499, "CANCELLED"),
    e.TooLarge: Status(413, "INVALID_ARGUMENT"),
    e.Unauthorized: Status(401, "UNAUTHENTICATED"),
    e.StaleRevision: Status(409, "ABORTED"),
    e.StoreUnavailable: Status(503, "UNAVAILABLE", retry=True),
    e.ConversionFailed: Status(422, "FAILED_PRECONDITION"),
    e.ArtifactCorrupt: Status(500, "DATA_LOSS"),
    e.EngineFailed: Status(500, "INTERNAL"),
    e.Conflict: Status(409, "FAILED_PRECONDITION"),
    e.OperatorError: Status(500, "INTERNAL"),
}


def status_of(error: BaseException) -> Status:
    """The status of the nearest class of `error` in the table; `INTERNAL` for what is not in it."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), INTERNAL)


def message_of(error: BaseException) -> str:
    """What a client may read: a `ServingError`'s message, and never the text of anything else."""
    return error.message if isinstance(error, e.ServingError) else "internal error"


def retry_after(status: Status) -> str | None:
    """The value of `Retry-After` in whole seconds, where trying again may help."""
    return str(ceil(RETRY_AFTER_S)) if status.retry else None


def error_body(message: str) -> bytes:
    """The error object of the Open Inference Protocol ("Inference Response JSON Error Object")."""
    return orjson.dumps({"error": message.encode("utf-8", "replace").decode()})


def log_unknown(error: BaseException, where: str) -> None:
    """Log what is not a `ServingError` whole; `where` names what was being done."""
    if not isinstance(error, e.ServingError):
        logger.error("unexpected error %s", where, exc_info=error)
