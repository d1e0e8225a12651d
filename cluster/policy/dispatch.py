"""Where a gateway sends its next micro-batch, and when that had better wait for company."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Protocol, TypeVar

HOLD_S = 0.002  # a busy replica with longer work is not sent a partial micro-batch: a hop takes a tenth of that


class Member(Protocol):
    """A replica as a gateway knows it. `calls` are its micro-batches in flight."""

    @property
    def calls(self) -> Sized: ...
    @property
    def outstanding_rows(self) -> int: ...
    @property
    def queue_rows(self) -> int: ...
    @property
    def draining(self) -> bool: ...
    @property
    def silent(self) -> bool: ...
    @property
    def exclusive(self) -> bool: ...


M = TypeVar("M", bound=Member)


def least_loaded(members: Iterable[M], in_flight: int) -> M | None:
    """The replica with the fewest outstanding rows among those with fewer than `in_flight` micro-batches."""
    best: M | None = None
    least = 0
    for member in members:
        if member.draining or member.silent or member.exclusive or len(member.calls) >= in_flight:
            continue
        rows = member.outstanding_rows + member.queue_rows
        if best is None or rows < least:
            best, least = member, rows
    return best


def better_held(outstanding_rows: int, waiting_rows: int, batch_rows: int, ahead_s: float) -> bool:
    """Whether what waits should wait for company: it does not fill a micro-batch, and the chosen replica is busy for
    so long (`ahead_s`) that one sent when it is free comes soon enough. Sent now, it would run as small as it is."""
    return outstanding_rows > 0 and waiting_rows < batch_rows and ahead_s > HOLD_S
