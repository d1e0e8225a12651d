"""A micro-batch as a replica's engine sees it, what the engine answers, and the interface between the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from cluster.errors import ServingError

Array = NDArray[Any]


class MicroBatch:
    """What a gateway sent in one frame.

    Attributes:
        rows: Rows of each request.
        deadlines_s: Of each request, on this process's `time.monotonic()`.
        priority: INTERACTIVE or BATCH.
        ids: The clients' request ids, or ().
        traces: The clients' traceparents, or ().
        arrays: Per signature input: [total_rows, ...], or for a model that is not batched the request's whole
            tensor. Numeric ones are views of the received bytes, aligned and free to be written; BYTES are object
            arrays of `bytes`.
        tails: Shape of each input without its rows (whole, if not batched): micro-batches with equal `tails` may be
            computed together.
        total_rows: sum(rows).
        source: Which connection it came from.
    """

    __slots__ = ("arrays", "deadlines_s", "ids", "priority", "rows", "source", "tails", "total_rows", "traces")

    def __init__(
        self,
        rows: tuple[int, ...],
        deadlines_s: tuple[float, ...],
        arrays: tuple[Array, ...],
        tails: tuple[tuple[int, ...], ...],
        priority: int = 0,
        ids: tuple[str, ...] = (),
        source: int = 0,
        traces: tuple[str, ...] = (),
    ) -> None:
        self.rows = rows
        self.deadlines_s = deadlines_s
        self.arrays = arrays
        self.tails = tails
        self.priority = priority
        self.ids = ids
        self.source = source
        self.traces = traces
        self.total_rows = sum(rows)


class MicroResult:
    """What an engine answers.

    Attributes:
        errors: By request index.
        outputs: Per signature output, the rows of the requests that are not in `errors`, in order; None when there
            are no such requests.
        queue_s: Seconds between arrival and the start of the computation.
        compute_s: Seconds of the computation.
        batch_rows: Rows that were computed together.
    """

    __slots__ = ("batch_rows", "compute_s", "errors", "outputs", "queue_s")

    def __init__(
        self,
        outputs: tuple[Array, ...] | None,
        errors: dict[int, ServingError] | None = None,
        queue_s: float = 0.0,
        compute_s: float = 0.0,
        batch_rows: int = 0,
    ) -> None:
        self.outputs = outputs
        self.errors = errors if errors is not None else {}
        self.queue_s = queue_s
        self.compute_s = compute_s
        self.batch_rows = batch_rows


Done = Callable[[MicroResult], None]


class Engine(Protocol):
    """What a wire server gives its micro-batches to. Everything is called on the server's event loop."""

    def submit(self, batch: MicroBatch, done: Done) -> None:
        """Compute it. `done` is called exactly once, on the event loop, perhaps from inside `submit`."""

    def cancel(self, batch: MicroBatch, indices: Sequence[int]) -> None:
        """Nobody waits for these requests any more. `done` is still called once for the micro-batch."""

    def queue_rows(self) -> int:
        """Rows that wait."""

    def ahead_rows(self, source: int) -> int:
        """Rows that would be computed before an interactive micro-batch which comes from `source` now."""
