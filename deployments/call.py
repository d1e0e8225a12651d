"""One inference call inside a gateway: what a codec makes of a client's bytes, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.documents import VersionRecord
from cluster.errors import ServingError

Buffer = bytes | bytearray | memoryview

INTERACTIVE, BATCH = 0, 1  # the two priority classes, most urgent first


@dataclass(slots=True)
class TensorRequest:
    """Decoded and checked against the version's signature.

    Attributes:
        rows: Rows this request asks for; 1 for a model that is not batched.
        shapes: Per signature input, the whole shape (rows included).
        data: Per signature input, row-major little-endian bytes; for BYTES, each element behind its length as a
            4-byte little-endian integer (Open Inference Protocol, binary tensor data extension). May be views of the
            request's body.
        deadline_s: When the answer stops being useful, on `time.monotonic()`.
        priority: INTERACTIVE or BATCH.
        id: The client's request id, or "".
        trace: The client's W3C traceparent, or "".
    """

    rows: int
    shapes: tuple[tuple[int, ...], ...]
    data: tuple[Buffer, ...]
    deadline_s: float
    priority: int = INTERACTIVE
    id: str = ""
    trace: str = ""


@dataclass(slots=True)
class TensorAnswer:
    """A request's own rows of every output, in signature order, encoded as in `TensorRequest.data`.

    `queue_s` and `compute_s` are the replica's: waiting before its batch ran, and the batch itself, which had
    `batch_rows` rows.
    """

    shapes: tuple[tuple[int, ...], ...]
    data: tuple[Buffer, ...]
    queue_s: float = 0.0
    compute_s: float = 0.0
    batch_rows: int = 0


Reply = Callable[[TensorAnswer | ServingError], None]
"""Called exactly once per submitted request, on the event loop, never from inside `submit`."""


class Ticket(Protocol):
    """A submitted request."""

    def cancel(self) -> None:
        """The client went away: drop queued work. The reply is then called with `Cancelled`. Idempotent."""


class Arm(Protocol):
    """One version, as a gateway sees it."""

    record: VersionRecord

    @property
    def ready(self) -> bool:
        """Whether a replica is connected, or the version may be woken by a request."""

    def submit(self, request: TensorRequest, reply: Reply) -> Ticket:
        """Queue the request. Refusals (`Overloaded`, `DeadlineExceeded`, ...) come through `reply` as well."""
