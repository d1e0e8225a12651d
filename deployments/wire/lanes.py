"""The requests that wait for a replica, in the order in which they are to go.

A lane holds requests that may share a micro-batch. Within a class of priority the lane with the oldest request is next,
so that no shape starves another; every `CLASS_TURN`-th micro-batch belongs to the less urgent class if it waits.
Requests that were answered while they waited stay in their lane until they are met or too many of them lie around.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from deployments.call import BATCH, INTERACTIVE
from deployments.wire.calls import WAITING, Entry

CLASS_TURN = 8
STALE_ALLOWED = 64


class Lane:
    """Requests that may share a micro-batch, oldest first."""

    __slots__ = ("entries", "key", "priority")

    def __init__(self, key: object, priority: int) -> None:
        self.key = key
        self.priority = priority
        self.entries: deque[Entry] = deque()


class Lanes:
    """A queue of entries that have state WAITING."""

    def __init__(self) -> None:
        self._lanes: dict[object, Lane] = {}
        self._order: tuple[list[tuple[int, Lane]], list[tuple[int, Lane]]] = ([], [])  # heaps by oldest entry
        self._urgent_run = 0  # micro-batches of the urgent class since the other one had a turn
        self._stale = 0

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def add(self, entry: Entry, key: object) -> None:
        """`entry.seq` must be larger than any before. Equal keys imply equal priority."""
        lane = self._lanes.get(key)
        if lane is None:
            priority = entry.request.priority
            lane = self._lanes[key] = Lane(key, priority)
            heappush(self._order[priority], (entry.seq, lane))
        lane.entries.append(entry)

    def waiting(self) -> list[Entry]:
        """Every entry that waits."""
        return [entry for lane in self._lanes.values() for entry in lane.entries if entry.state == WAITING]

    def answered(self, live: int) -> None:
        """An entry in a lane no longer waits; `live` others do."""
        self._stale += 1
        if self._stale > STALE_ALLOWED + live:
            self._sweep()

    def take(self, max_rows: int, max_bytes: int) -> list[Entry]:
        """The next micro-batch: at least one entry, more within the bounds; [] if nothing waits."""
        while True:
            order = self._next_class()
            if not order:
                return []
            seq, lane = heappop(order)
            self._skip_stale(lane)
            if not lane.entries:
                del self._lanes[lane.key]
            elif lane.entries[0].seq != seq:  # its oldest was answered: perhaps another lane is older now
                heappush(order, (lane.entries[0].seq, lane))
            else:
                taken = self._take_from(lane, max_rows, max_bytes)
                self._took_turn(lane.priority)
                if lane.entries:
                    heappush(order, (lane.entries[0].seq, lane))
                else:
                    del self._lanes[lane.key]
                return taken

    def _take_from(self, lane: Lane, max_rows: int, max_bytes: int) -> list[Entry]:
        entries = lane.entries
        taken: list[Entry] = []
        rows = size = 0
        while entries:
            entry = entries[0]
            if entry.state != WAITING:
                entries.popleft()
                self._stale -= 1
                continue
            rows += entry.rows
            size += entry.size_bytes
            if taken and (rows > max_rows or size > max_bytes):
                break
            taken.append(entries.popleft())
        return taken

    def _skip_stale(self, lane: Lane) -> None:
        entries = lane.entries
        while entries and entries[0].state != WAITING:
            entries.popleft()
            self._stale -= 1

    def _next_class(self) -> list[tuple[int, Lane]]:
        urgent, other = self._order[INTERACTIVE], self._order[BATCH]
        if urgent and other:
            return other if self._urgent_run >= CLASS_TURN - 1 else urgent
        return urgent or other

    def _took_turn(self, priority: int) -> None:
        waits = bool(self._order[BATCH])
        self._urgent_run = self._urgent_run + 1 if priority == INTERACTIVE and waits else 0

    def _sweep(self) -> None:
        """Forget the answered entries."""
        lanes = list(self._lanes.values())
        self._lanes = {}
        for heap in self._order:
            heap.clear()
        for lane in lanes:
            lane.entries = deque(entry for entry in lane.entries if entry.state == WAITING)
            if lane.entries:
                self._lanes[lane.key] = lane
                heappush(self._order[lane.priority], (lane.entries[0].seq, lane))
        self._stale = 0
