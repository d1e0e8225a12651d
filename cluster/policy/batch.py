"""Which waiting work an engine runs next.

Work arrives as units: micro-batches of one or more requests that share tensor shapes (`group`) and a priority class.
A unit is never divided. The policy reads a queue in arrival order and answers with a decision; the engine's shell in
`deployments.engine` reads the clock and carries it out.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from cluster.costs import CostCurve
from cluster.errors import InvalidRequest


@dataclass(slots=True)
class Waiting:
    """A unit in the queue. `deadline_s` is the latest deadline among its requests, on the engine's clock."""

    id: int
    rows: int
    arrived_s: float
    deadline_s: float = inf
    priority: int = 0  # smaller is more urgent
    group: Hashable = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now.

    Attributes:
        run: Ids of the units that make the next batch, in arrival order.
        expire: Ids whose deadline has passed.
        wake_s: With nothing to run: when to ask again.
    """

    run: tuple[int, ...] = ()
    expire: tuple[int, ...] = ()
    wake_s: float = inf


NOTHING = Decision()


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """First in, first out per priority class; a batch never exceeds `max_rows`.

    Attributes:
        max_rows: Rows one batch may have.
        max_queue_rows: Rows that may wait; more are refused on arrival.
        max_wait_s: How long the oldest unit may wait for company. 0 runs whatever is there.
        costs: Measured seconds per batch; an empty curve predicts nothing.
        class_turn: Every so many batches the less urgent class goes first, so that it cannot starve.
    """

    max_rows: int
    max_queue_rows: int = 1024
    max_wait_s: float = 0.0
    costs: CostCurve = field(default_factory=CostCurve)
    class_turn: int = 8

    def __post_init__(self) -> None:
        if self.max_rows < 1:
            raise InvalidRequest(f"batch.max_rows: expected at least 1, got {self.max_rows}")
        if self.max_rows > self.max_queue_rows:
            raise InvalidRequest(
                f"batch.max_rows: a batch of {self.max_rows} rows can never fill "
                f"with a queue of {self.max_queue_rows} rows"
            )

    def predict_s(self, rows_ahead: int, rows: int, running_left_s: float = 0.0) -> float:
        """Seconds until a unit of `rows` rows is answered when `rows_ahead` rows go first."""
        full, rest = divmod(rows_ahead, self.max_rows)
        ahead_s = full * self.costs.run_s(self.max_rows)
        if rest + rows <= self.max_rows:
            return running_left_s + ahead_s + self.costs.run_s(rest + rows)
        return running_left_s + ahead_s + self.costs.run_s(rest) + self.costs.run_s(rows)

    def admits(self, queue_rows: int, rows: int) -> bool:
        """Whether a unit of `rows` rows may join a queue of `queue_rows` rows."""
        return queue_rows + rows <= self.max_queue_rows

    def decide(self, queue: Sequence[Waiting] | Iterable[Waiting], now_s: float, urgent_run: int = 0) -> Decision:
        """The next batch from `queue`, which is in arrival order.

        Args:
            queue: Every waiting unit.
            now_s: The engine's clock.
            urgent_run: How many batches in a row the most urgent class has had while others waited.
        """
        expire: list[int] = []
        live: list[Waiting] = []
        for unit in queue:
            if unit.deadline_s < now_s:
                expire.append(unit.id)
            else:
                live.append(unit)
        if not live:
            return Decision(expire=tuple(expire)) if expire else NOTHING
        head = self._head(live, urgent_run)
        batch: list[Waiting] = []
        rows = 0
        tightest = inf
        full = False  # nothing that waits can still join
        for unit in live:
            if unit.group != head.group or unit.priority != head.priority:
                continue
            if rows + unit.rows > self.max_rows and batch:
                full = True
                break
            batch.append(unit)
            rows += unit.rows
            tightest = min(tightest, unit.deadline_s)
            if rows >= self.max_rows:
                break
        if rows < self.max_rows and not full and self.max_wait_s > 0:
            patience_s = min(head.arrived_s + self.max_wait_s, tightest - self.costs.run_s(rows))
            if patience_s > now_s:
                return Decision(expire=tuple(expire), wake_s=patience_s)
        return Decision(run=tuple(unit.id for unit in batch), expire=tuple(expire))

    def _head(self, live: list[Waiting], urgent_run: int) -> Waiting:
        """The unit that must be in the next batch: the oldest of the class whose turn it is."""
        urgent = min(unit.priority for unit in live)
        if urgent_run >= self.class_turn:
            for unit in live:
                if unit.priority != urgent:
                    return unit
        return next(unit for unit in live if unit.priority == urgent)
