"""Whose rows go next where several sources feed one queue: start-time fair queueing.

Every source has a turn, counted in rows; the lowest goes first, and what it runs moves its turn on by as many rows. So
sources that always have work get equal rows, whatever the depth of their queues and the size of their units. A source
that had nothing waiting comes back at the turn the others have reached: it has neither saved up rows nor lost any.
Rows are charged when they start, not when they arrive, so that what expires or is withdrawn costs its source nothing.

Source: Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996.
"""

from __future__ import annotations

from collections.abc import Iterable

KEPT_TURNS = 256  # of a class: sources come and go, and are not told apart from those that wait


class Shares:
    """The turns of every (priority class, source); sources nobody mentioned are at the turn that was reached."""

    __slots__ = ("_reached", "_turns")

    def __init__(self) -> None:
        self._turns: dict[int, dict[int, int]] = {}
        self._reached: dict[int, int] = {}

    def turn(self, priority: int, source: int) -> int:
        """When the source's oldest unit of this class is due: the lowest is next."""
        turns = self._turns.get(priority)
        return max(turns.get(source, 0), self._reached[priority]) if turns is not None else 0

    def ran(self, priority: int, taken: Iterable[tuple[int, int]]) -> None:
        """A batch of units of one class has started: the (source, rows) of each, the lowest turn first."""
        turns = self._turns.get(priority)
        if turns is None:
            turns = self._turns[priority] = {}
            self._reached[priority] = 0
        reached = self._reached[priority]
        first = True
        for source, rows in taken:
            turn = max(turns.get(source, 0), reached)
            if first:
                self._reached[priority] = reached = turn
                first = False
            turns[source] = turn + rows
        if len(turns) > KEPT_TURNS:  # all begin again as equals
            self._reached[priority] = max(turns.values())
            turns.clear()
