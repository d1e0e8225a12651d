"""Inference requests without their transport: route, decode, submit, and the answer as HTTP/1.1 bytes.

One `Inference` serves all connections of a gateway. For every version that is asked for it keeps a `Lane`: the codec
and the metric cell, rebuilt when the version's record or its model's document changes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from typing import Protocol

from cluster.documents import ModelDocument, VersionRecord
from cluster.errors import InvalidRequest, ServingError
from cluster.names import Target
from cluster.settings import Settings
from deployments.call import Arm, Buffer, Reply, TensorAnswer, Ticket
from deployments.gateway.dispatch import Dispatcher
from deployments.gateway.heads import KnownHeads
from deployments.gateway.request_log import RequestLog
from deployments.gateway.targets import infer_target
from deployments.gateway.tracing import NO_TRACE, Trace, trace_of
from deployments.metrics import Cell, Metrics
from deployments.oip.codec import InferCodec
from deployments.oip.request import MAX_JSON_BYTES, Limits
from deployments.oip.response import OutputPlan
from deployments.status import error_body, log_unknown, message_of, retry_after, status_of

logger = logging.getLogger("prism.gateway")

MAX_BUFFERED_BYTES = 512 << 20  # of bodies that no version's queue counts, over all connections
SLOW_S = 1.0  # requests that took longer are logged
_JOIN_BYTES = 32 << 10  # up to here one copy is cheaper than a gathering write
_KEPT_TARGETS = 1024
_REASONS = {status.value: b"%d %b" % (status.value, status.phrase.encode()) for status in HTTPStatus}
_REASONS[499] = b"499 Client Closed Request"


class Lane:
    """What a gateway keeps of one version: made for one record and one document, whose `arm` is its role there."""

    __slots__ = ("cell", "codec", "document", "record", "version")

    def __init__(self, document: ModelDocument, record: VersionRecord, codec: InferCodec, cell: Cell) -> None:
        self.document = document
        self.record = record
        self.codec = codec
        self.cell = cell
        self.version = record.version.encode()


class Pending:
    """An accepted request that waits for its answer."""

    __slots__ = ("id", "lane", "plan", "rows", "ticket", "trace")

    def __init__(self, lane: Lane, plan: OutputPlan, rows: int, id: str) -> None:
        self.lane = lane
        self.plan = plan
        self.rows = rows
        self.id = id
        self.ticket: Ticket | None = None
        self.trace: Trace | None = None


class Held(Protocol):
    """What keeps a request's body in memory."""

    held_bytes: int


class Inference:
    """Shared by all connections of one gateway; used on its event loop only.

    Attributes:
        draining: Answers say `Connection: close`, and health checks fail.
        buffered_bytes: Bodies that are arriving, being inflated or waiting for their turn on a connection.
        heads: Of requests that came before.
    """

    def __init__(
        self, dispatcher: Dispatcher, settings: Settings, metrics: Metrics, log: RequestLog | None = None
    ) -> None:
        self.dispatcher = dispatcher
        self.metrics = metrics
        self.http = settings.http
        self.draining = False
        self.buffered_bytes = 0
        self.heads = KnownHeads()
        self._limits = Limits(
            max_json_bytes=min(MAX_JSON_BYTES, settings.http.max_body_bytes),
            max_json_depth=settings.http.max_json_depth,
            max_deadline_s=settings.gateway.max_deadline_s,
        )
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._targets: dict[bytes, Target] = {}
        self._common: Sequence[tuple[bytes, bytes]] = ()
        self._common_bytes = b""
        self._notes: deque[dict[str, object]] = deque(maxlen=100)
        self._log = log if log is not None else RequestLog()
        self._sampled = self._log.share > 0

    def hold(self, body: Held, size_bytes: int) -> bool:
        """Count `body` as so large, which replaces what was counted before; whether there is room for all bodies."""
        self.buffered_bytes += size_bytes - body.held_bytes
        body.held_bytes = size_bytes
        return self.buffered_bytes <= MAX_BUFFERED_BYTES

    def target(self, url: bytes) -> Target | None:
        """See `infer_target`. Raises: InvalidRequest."""
        known = self._targets.get(url)
        if known is not None:
            return known
        target = infer_target(url)
        if target is not None and len(url) <= 256:
            if len(self._targets) >= _KEPT_TARGETS:
                self._targets.clear()
            self._targets[url] = target
        return target

    def submit(self, target: Target, headers: dict[bytes, bytes], body: Buffer, now_s: float, reply: Reply) -> Pending:
        """Route, decode and queue one request.

        Args:
            headers: By lower-case name.
            now_s: `time.monotonic()` when the request was complete; its deadline counts from here.
            reply: Called once with the outcome, and never from inside.

        Raises:
            ServingError: the request was not queued, and is counted as failed; `reply` is not called.
        """
        cell = self.metrics.unknown
        try:
            key = headers.get(b"x-prism-key")
            arm = self.dispatcher.route(target, None if key is None else key.decode("utf-8", "replace"))
            lane = self._lane(target.model, arm)
            cell = lane.cell
            length = headers.get(b"inference-header-content-length")
            timeout = headers.get(b"x-prism-timeout-ms")
            request, plan = lane.codec.decode(
                body,
                None if length is None else _whole(length, "Inference-Header-Content-Length"),
                now_s,
                0.0 if timeout is None else _whole(timeout, "X-Prism-Timeout-Ms") / 1000,
            )
            pending = Pending(lane, plan, request.rows, request.id)
            if b"traceparent" in headers or b"x-request-id" in headers:
                pending.trace = trace = trace_of(headers)
                if trace is not None:
                    request.trace = trace.parent
                    request.id = request.id or trace.request_id
            pending.ticket = arm.submit(request, reply)
            return pending
        except Exception as error:
            status, request_s = status_of(error).http, time.monotonic() - now_s
            cell.failed(status, request_s)
            if self._sampled and self._log.wants():
                trace = trace_of(headers) or NO_TRACE
                self._log.note(
                    status=status,
                    request_s=request_s,
                    model=target.model[:100],
                    version=target.version or "",
                    request_id=trace.request_id,
                    traceparent=trace.parent,
                    reason=message_of(error),
                )
            raise

    def answer(
        self, pending: Pending, outcome: TensorAnswer | ServingError, since_s: float, keep: bool
    ) -> list[Buffer]:
        """The HTTP response to a request that was submitted; counts it."""
        now_s = time.monotonic()
        lane = pending.lane
        if isinstance(outcome, BaseException):  # not raised: its traceback would hold it in a cycle
            return self._failed(pending, outcome, now_s - since_s, keep)
        try:
            encoded = lane.codec.encode(pending.plan, outcome, pending.id)
        except Exception as error:
            return self._failed(pending, error, now_s - since_s, keep)
        request_s = now_s - since_s
        lane.cell.answered(now_s, request_s, outcome.queue_s, outcome.compute_s, pending.rows, outcome.batch_rows)
        if request_s > SLOW_S:
            self._note(pending, 200, request_s, "", outcome)
        if self._sampled and self._log.wants():
            self._sample(pending, 200, request_s, "", outcome)
        tensors = encoded.tensors
        size = len(encoded.json)
        for tensor in tensors:
            size += len(tensor)
        close = b"" if keep else b"connection: close\r\n"
        if pending.trace is not None:
            close = pending.trace.header + close
        if encoded.binary:
            head = (
                b"HTTP/1.1 200 OK\r\n%bcontent-type: application/octet-stream\r\n"
                b"inference-header-content-length: %d\r\ncontent-length: %d\r\nx-prism-model-version: %b\r\n%b\r\n%b"
            ) % (self._common_bytes, len(encoded.json), size, lane.version, close, encoded.json)
        else:
            head = (
                b"HTTP/1.1 200 OK\r\n%bcontent-type: application/json\r\n"
                b"content-length: %d\r\nx-prism-model-version: %b\r\n%b\r\n%b"
            ) % (self._common_bytes, size, lane.version, close, encoded.json)
        if size <= _JOIN_BYTES:
            return [b"".join((head, *tensors))]
        return [head, *tensors]

    def _failed(self, pending: Pending, error: BaseException, request_s: float, keep: bool) -> list[Buffer]:
        status = status_of(error).http
        pending.lane.cell.failed(status, request_s)
        if status >= 500:
            self._note(pending, status, request_s, message_of(error))
        if self._sampled and self._log.wants():
            self._sample(pending, status, request_s, message_of(error))
        echo = b"" if pending.trace is None else pending.trace.header
        return [self.failure(error, keep, pending.lane.version, echo)]

    def cancelled(self, pending: Pending, since_s: float) -> None:
        """Count a request whose client went away."""
        request_s = time.monotonic() - since_s
        pending.lane.cell.failed(499, request_s)
        if self._sampled and self._log.wants():
            self._sample(pending, 499, request_s, "the client went away")

    def failure(self, error: BaseException, keep: bool, version: bytes = b"", more: bytes = b"") -> bytes:
        """The HTTP response for an error; one that is no `ServingError` is logged and stays private.

        `more` are further header lines.
        """
        log_unknown(error, "while answering an inference request")
        status = status_of(error)
        wait = retry_after(status)
        if wait is not None:
            more += b"retry-after: %b\r\n" % wait.encode()
        if version:
            more += b"x-prism-model-version: %b\r\n" % version
        return self.refusal(status.http, message_of(error), keep, more)

    def refusal(self, status: int, message: str, keep: bool, more: bytes = b"") -> bytes:
        """An HTTP response with the protocol's error object. `more` are further header lines."""
        body = error_body(message)
        close = b"" if keep else b"connection: close\r\n"
        return b"HTTP/1.1 %b\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
            _REASONS[status],
            self._common_bytes,
            len(body),
            more,
            close,
            body,
        )

    def common_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Headers of every response (the date); called whenever they may have changed."""
        if headers is not self._common:
            self._common = headers
            self._common_bytes = b"".join(b"%b: %b\r\n" % header for header in headers)

    def sweep(self) -> None:
        """Off the path: write what is to be logged, forget versions that are gone."""
        while self._notes:
            logger.warning("request", extra=self._notes.popleft())
        models = set(self.dispatcher.models())
        for key in [key for key in self._lanes if key[0] not in models]:
            del self._lanes[key]
        versions = {(model, version) for model in models for version in self.dispatcher.document(model).versions}
        self.metrics.keep(versions)

    def write_log(self) -> None:
        """Write what was sampled; in any thread, off the loop."""
        self._log.flush()

    @property
    def log_waits(self) -> bool:
        """Whether `write_log` has something to do."""
        return self._log.waiting > 0

    def _lane(self, model: str, arm: Arm) -> Lane:
        record = arm.record
        key = (model, record.version)
        lane = self._lanes.get(key)
        document = self.dispatcher.document(model)
        if lane is not None and lane.record is record and lane.document is document:
            return lane
        codec = lane.codec if lane is not None and lane.record is record else InferCodec(model, record, self._limits)
        cell = self.metrics.cell(model, record.version, role_of(document, record.version))
        lane = self._lanes[key] = Lane(document, record, codec, cell)
        return lane

    def _sample(
        self, pending: Pending, status: int, request_s: float, message: str, answer: TensorAnswer | None = None
    ) -> None:
        trace = pending.trace
        self._log.note(
            status=status,
            request_s=request_s,
            model=pending.lane.document.name,
            version=pending.lane.record.version,
            rows=pending.rows,
            request_id=_name(pending),
            traceparent=trace.parent if trace is not None else "",
            queue_s=answer.queue_s if answer is not None else None,
            run_s=answer.compute_s if answer is not None else None,
            batch_rows=answer.batch_rows if answer is not None else None,
            reason=message,
        )

    def _note(
        self, pending: Pending, status: int, request_s: float, message: str, answer: TensorAnswer | None = None
    ) -> None:
        self._notes.append(
            {
                "request_id": _name(pending),
                "model": pending.lane.document.name,
                "version": pending.lane.record.version,
                "rows": pending.rows,
                "request_s": round(request_s, 6),
                "queue_s": round(answer.queue_s, 6) if answer else None,
                "run_s": round(answer.compute_s, 6) if answer else None,
                "status": status,
                "reason": message[:300],
            }
        )


def _name(pending: Pending) -> str:
    """The request's id in its body, else in its headers, else ""."""
    return (pending.id or (pending.trace.request_id if pending.trace is not None else ""))[:100]


def role_of(document: ModelDocument, version: str) -> str:
    """The arm a version is: `canary` or `stable` by the labels of those names, else ""."""
    return next((label for label in ("canary", "stable") if document.labels.get(label) == version), "")


def _whole(value: bytes, name: str) -> int:
    if not value.isdigit() or len(value) > 15:
        raise InvalidRequest(f"{name}: expected a whole number, got {value[:40].decode('latin-1')!r}")
    return int(value)
