"""Which waiting work an engine runs next.

Work arrives as units: micro-batches of one or more requests that share tensor shapes (`group`) and a priority class.
A unit is never divided. Units of one class may come from several sources (gateways), which take turns by rows. The
policy reads a queue in arrival order and answers with a decision; the engine's shell in `deployments.engine` reads the
clock and carries it out.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from operator import itemgetter

from cluster.costs import CostCurve
from cluster.errors import InvalidRequest
from cluster.policy.shares import Shares


@dataclass(slots=True)
class Waiting:
    """A unit in the queue. `deadline_s` is the latest deadline among its requests, on the engine's clock."""

    id: int
    rows: int
    arrived_s: float
    deadline_s: float = inf
    priority: int = 0  # smaller is more urgent
    group: Hashable = None
    source: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now.

    Attributes:
        run: Ids of the units that make the next batch, in the order of their turns.
        expire: Ids whose deadline has passed.
        wake_s: With nothing to run: when to ask again.
    """

    run: tuple[int, ...] = ()
    expire: tuple[int, ...] = ()
    wake_s: float = inf


NOTHING = Decision()
EQUAL = Shares()  # nobody has had anything yet; never changed


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """Per priority class, sources take turns by rows, and each source's units go first in, first out.

    A batch never exceeds `max_rows`.

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

    def predict_s(self, rows_ahead: int, rows: int) -> float:
        """Seconds until a unit of `rows` rows is answered when `rows_ahead` rows go first and nothing is running."""
        full, rest = divmod(rows_ahead, self.max_rows)
        ahead_s = full * self.costs.run_s(self.max_rows)
        if rest + rows <= self.max_rows:
            return ahead_s + self.costs.run_s(rest + rows)
        return ahead_s + self.costs.run_s(rest) + self.costs.run_s(rows)

    def admits(self, queue_rows: int, rows: int) -> bool:
        """Whether a unit of `rows` rows may join a queue of `queue_rows` rows."""
        return queue_rows + rows <= self.max_queue_rows

    def rows_ahead(self, queue: Iterable[Waiting], priority: int, source: int, shares: Shares = EQUAL) -> int:
        """Rows of `queue`, which is in arrival order, that go before a unit which arrives from `source` now."""
        ahead = 0
        turns: dict[int, int] = {}
        peers: list[tuple[int, int]] = []
        for unit in queue:
            if unit.priority < priority:
                ahead += unit.rows
            elif unit.priority == priority:
                turn = turns.get(unit.source)
                if turn is None:
                    turn = shares.turn(priority, unit.source)
                turns[unit.source] = turn + unit.rows
                peers.append((turn, unit.rows))
        own = turns[source] if source in turns else shares.turn(priority, source)
        return ahead + sum(rows for turn, rows in peers if turn <= own)

    def decide(self, queue: Iterable[Waiting], now_s: float, urgent_run: int = 0, shares: Shares = EQUAL) -> Decision:
        """The next batch from `queue`, which is in arrival order.

        Args:
            queue: Every waiting unit.
            now_s: The engine's clock.
            urgent_run: How many batches in a row the most urgent class has had while others waited.
            shares: Whose turn it is.
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
        members = in_turn(self._class(live, urgent_run), shares)
        head = members[0]
        batch: list[Waiting] = []
        rows = 0
        oldest_s = tightest_s = inf
        full = False  # nothing that waits can still join
        for unit in members:
            if unit.group != head.group:
                continue
            if rows + unit.rows > self.max_rows and batch:
                full = True
                break
            batch.append(unit)
            rows += unit.rows
            oldest_s = min(oldest_s, unit.arrived_s)
            tightest_s = min(tightest_s, unit.deadline_s)
            if rows >= self.max_rows:
                break
        if rows < self.max_rows and not full and self.max_wait_s > 0:
            patience_s = min(oldest_s + self.max_wait_s, tightest_s - self.costs.run_s(rows))
            if patience_s > now_s:
                return Decision(expire=tuple(expire), wake_s=patience_s)
        return Decision(run=tuple([unit.id for unit in batch]), expire=tuple(expire))

    def _class(self, live: list[Waiting], urgent_run: int) -> list[Waiting]:
        """The units of the class whose turn it is."""
        urgent = min([unit.priority for unit in live])
        if urgent_run >= self.class_turn:
            urgent = next((unit.priority for unit in live if unit.priority != urgent), urgent)
        return [unit for unit in live if unit.priority == urgent]


def in_turn(units: Sequence[Waiting], shares: Shares) -> Sequence[Waiting]:
    """`units`, all of one class and in arrival order, in the order of their turns; on equal turns the older first."""
    first = units[0].source
    if all([unit.source == first for unit in units]):
        return units
    turns: dict[int, int] = {}
    placed: list[tuple[int, Waiting]] = []
    for unit in units:
        turn = turns.get(unit.source)
        if turn is None:
            turn = shares.turn(unit.priority, unit.source)
        placed.append((turn, unit))
        turns[unit.source] = turn + unit.rows
    placed.sort(key=itemgetter(0))
    return [unit for _, unit in placed]
