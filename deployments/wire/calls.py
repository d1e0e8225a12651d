"""What bounds a pool, what it keeps (requests, micro-batches in flight, connected replicas), what it asks its shell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.errors import ServingError
from cluster.policy.arrival import Arrivals
from deployments.call import INTERACTIVE, Reply, TensorAnswer, TensorRequest

Outcome = TensorAnswer | ServingError

WAITING, SENT, DONE = 0, 1, 2
NO_REQUEST = TensorRequest(0, (), (), 0.0)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Bounds of one pool.

    Attributes:
        batch_rows: Rows per micro-batch; a single request with more goes alone.
        batch_bytes: Likewise in bytes.
        in_flight: Micro-batches per replica.
        max_waiting_rows: Rows that may wait here; more are refused.
        max_waiting_bytes: Likewise in bytes.
        run_s: Predicted seconds for a batch of n rows; 0 where nothing was measured.
    """

    batch_rows: int
    batch_bytes: int
    in_flight: int
    max_waiting_rows: int
    max_waiting_bytes: int
    run_s: Callable[[int], float]


class Withdrawer(Protocol):
    """Who a ticket turns to."""

    def withdraw(self, entry: Entry) -> None: ...


class Entry:
    """A submitted request; as a `Ticket`, what its submitter holds."""

    __slots__ = (
        "attempts",
        "call",
        "deadline_s",
        "lost_on",
        "owner",
        "reply",
        "request",
        "rows",
        "seq",
        "size_bytes",
        "state",
    )

    def __init__(self, owner: Withdrawer, request: TensorRequest, reply: Reply) -> None:
        self.owner = owner
        self.request = request
        self.reply = reply
        self.rows = request.rows
        self.deadline_s = request.deadline_s
        self.size_bytes = 0
        self.seq = 0
        self.attempts = 0
        self.lost_on = ""  # the node whose replica did not answer it
        self.state = DONE
        self.call: Call | None = None

    def cancel(self) -> None:
        """The client went away. The reply is called with `Cancelled` unless it was called before."""
        if self.state != DONE:
            self.owner.withdraw(self)


class Call:
    """A micro-batch in flight."""

    __slots__ = ("entries", "id", "peer", "rows")

    def __init__(self, id: int, peer: Peer, entries: list[Entry], rows: int) -> None:
        self.id = id
        self.peer = peer
        self.entries = entries
        self.rows = rows

    def settled(self, outcomes: Sequence[Outcome]) -> list[tuple[Reply, Outcome]]:
        """Who is to be told what, given one outcome per request; requests that were answered otherwise are left out."""
        told: list[tuple[Reply, Outcome]] = []
        for entry, outcome in zip(self.entries, outcomes, strict=True):
            if entry.state == SENT and entry.call is self:
                entry.state = DONE
                entry.call = None
                told.append((entry.reply, outcome))
        return told


class Peer:
    """A connected replica.

    `outstanding_rows` are in flight from this pool; `queue_rows` is what the replica last said, `ahead_rows` what of
    it goes before an interactive micro-batch of ours.
    """

    __slots__ = (
        "ahead_rows",
        "answered_s",
        "calls",
        "connected_s",
        "draining",
        "exclusive",
        "heard_s",
        "key",
        "node",
        "outstanding_rows",
        "owes_since_s",
        "pinged_s",
        "queue_rows",
        "silent",
        "told_s",
    )

    def __init__(self, key: int, queue_rows: int, now_s: float, ahead_rows: int, node: str) -> None:
        self.key = key
        self.node = node
        self.queue_rows = queue_rows
        self.ahead_rows = ahead_rows
        self.connected_s = now_s
        self.told_s = now_s  # when it said so
        self.answered_s = now_s  # when its last answer came
        self.outstanding_rows = 0
        self.calls: dict[int, Call] = {}
        self.draining = False
        self.silent = False
        self.exclusive = False  # computing a suspect, or kept free for one
        self.heard_s = now_s
        self.pinged_s = now_s
        self.owes_since_s = now_s  # when it last began to owe an answer

    @property
    def usable(self) -> bool:
        return not self.draining and not self.silent

    @property
    def has_answered(self) -> bool:
        """Whether an answer came from it since it connected."""
        return self.answered_s > self.connected_s

    def busy_s(self, arrivals: Arrivals, urgent: bool, now_s: float) -> float:
        """The least it has to compute before a request (`urgent`: an interactive one) that is sent now.

        That is what we sent or what it told: the two overlap, and both grow less with time.
        """
        told_s = arrivals.work_s(self.ahead_rows) - (now_s - self.told_s)
        rows = 0
        for call in self.calls.values():
            if not rows:
                rows = call.rows  # being computed, whatever has become of its requests
            elif not urgent or call.entries[0].request.priority == INTERACTIVE:
                rows += sum([entry.rows for entry in call.entries if entry.state == SENT])
        sent_s = arrivals.work_s(rows) - (now_s - max(self.owes_since_s, self.answered_s))
        return max(0.0, told_s, sent_s)


@dataclass(frozen=True, slots=True)
class Send:
    """Send these requests as one micro-batch."""

    peer: int
    call_id: int
    requests: list[TensorRequest]


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell the replica that nobody waits for this request any more."""

    peer: int
    call_id: int
    index: int


@dataclass(frozen=True, slots=True)
class SayGoodbye:
    """Tell the replica that no micro-batch follows."""

    peer: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask for a sign of life, and tell the backlog."""

    peer: int


@dataclass(frozen=True, slots=True)
class Want:
    """Requests wait, and there is no replica."""


Action = Send | Withdraw | SayGoodbye | Ping | Want
