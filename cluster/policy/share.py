"""How versions that want more than the cluster has divide it.

First everybody's minimum, then what each wants, then what is left over up to each one's most. In each round the more
important priority goes first; within a priority the next replica goes to whoever has the least by its weight, measured
by the resource of which its replicas take the largest share. A canary gets nothing that its stable version still
wants.

Source of the measure: Ghodsi et al., Dominant Resource Fairness (NSDI 2011), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heapreplace

from cluster.errors import InvalidRequest

SLACK = 1e-6  # resources are sums of decimal fractions
STEPS = 16  # turns that are taken singly before it is worth looking how many could be taken at once
JUMP_PRECISION = 1e-9  # of a level, relative to it


@dataclass(frozen=True, slots=True)
class Claim:
    """What one version asks for.

    Attributes:
        wants: Replicas it would have if it were alone.
        needs: Resources of one replica by name, such as {"GPU": 0.5}; zeros may be left out.
        least: Replicas it is to have whatever others want.
        most: Replicas it may have.
        weight: Its part next to others of its priority.
        priority: Larger goes first.
        after: Name of the claim it must not starve: a canary names its stable version.
    """

    wants: int
    needs: Mapping[str, float] = field(default_factory=dict)
    least: int = 0
    most: int = 1000
    weight: float = 1.0
    priority: int = 0
    after: str = ""

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("least", 0 <= self.least <= self.most, "0 to most"),
            ("wants", self.wants >= 0, "0 or more"),
            ("weight", self.weight > 0, "above 0"),
            ("needs", all(amount >= 0 for amount in self.needs.values()), "amounts of 0 or more"),
        ):
            if not ok:
                raise InvalidRequest(f"claim.{name}: expected {expected}, got {getattr(self, name)}")


def share(claims: Mapping[str, Claim], capacity: Mapping[str, float]) -> dict[str, int]:
    """The most replicas each claim may have. Together they fit `capacity`; a resource it does not name has none.

    Nothing that fits and that somebody may have is left over.
    """
    division = _Division(claims, capacity)
    division.fill(lambda claim: claim.least, patient=True)
    division.fill(lambda claim: max(claim.least, min(claim.wants, claim.most)), patient=True)
    division.fill(lambda claim: claim.most, patient=False)
    return division.given


def fits(claims: Mapping[str, Claim], capacity: Mapping[str, float]) -> bool:
    """Whether everybody can have what it wants, so that nothing needs to be divided."""
    used: dict[str, float] = {}
    for claim in claims.values():
        count = max(claim.least, min(claim.wants, claim.most))
        for name, amount in claim.needs.items():
            used[name] = used.get(name, 0.0) + count * amount
    return all(amount <= capacity.get(name, 0.0) + SLACK for name, amount in used.items())


def limits(claims: Mapping[str, Claim], capacity: Mapping[str, float]) -> dict[str, int]:
    """The most replicas of each claim that has to leave some to others; {} while there is nothing to divide.

    Who wants any is granted one at least: it waits for room, with a reason that `prism status` shows. What does not
    even fit an empty cluster bounds nobody.
    """
    rivals = {
        name: claim
        for name, claim in claims.items()
        if (claim.wants or claim.least)
        and all(amount <= capacity.get(resource, 0.0) + SLACK for resource, amount in claim.needs.items())
    }
    if len(rivals) < 2 or fits(rivals, capacity):
        return {}
    given = share(rivals, capacity)
    return {name: max(1, claim.least, given[name]) for name, claim in rivals.items()}


class _Division:
    """Replicas given so far and what is left.

    Replicas are given in turns, by who would have the least with one more. Between two events (a claim has all it may
    have, or no longer fits) nothing but these turns happens, so that many of them are taken in one jump: the cost grows
    with the number of claims, and not with the number of replicas.
    """

    def __init__(self, claims: Mapping[str, Claim], capacity: Mapping[str, float]) -> None:
        self._claims = claims
        self._left = dict(capacity)
        self._size = {name: _size(claim, capacity) for name, claim in claims.items()}
        self.given = dict.fromkeys(claims, 0)

    def fill(self, goal: Callable[[Claim], int], patient: bool) -> None:
        """Give until everybody has its goal or nothing fits. `patient`: canaries wait for their stable versions;
        without it they have had their turn."""
        goals = {name: goal(claim) for name, claim in self._claims.items()}
        waiting = {name for name in self._claims if self.given[name] < goals[name]}
        while waiting:
            ready = [
                name
                for name in waiting
                if not (patient and self._claims[name].after in waiting and self._claims[name].after != name)
            ] or list(waiting)  # canaries that wait for each other wait for nobody
            first = max(self._claims[name].priority for name in ready)
            waiting.discard(self._until_one_is_done(ready, first, goals))

    def _until_one_is_done(self, ready: list[str], priority: int, goals: Mapping[str, int]) -> str:
        """Take turns until one of those of `priority` has its goal, or does not fit: its name."""
        group = [name for name in ready if self._claims[name].priority == priority]
        while True:
            turns = [(self._level(name, self.given[name] + 1), name) for name in group]
            heapify(turns)
            for _ in range(STEPS):
                _, name = turns[0]
                if not self._fits({name: 1}):
                    return name
                self._take({name: 1})
                if self.given[name] == goals[name]:
                    return name
                heapreplace(turns, (self._level(name, self.given[name] + 1), name))
            self._take(self._jump(group, goals))

    def _jump(self, group: list[str], goals: Mapping[str, int]) -> dict[str, int]:
        """Replicas that `group` is given before one of it is done: nearly as many as there are."""
        low = min(self._level(name, self.given[name] + 1) for name in group)
        high = min(self._level(name, goals[name]) for name in group)
        reached = self._turns_below(group, high)
        if self._fits(reached):
            return reached
        while high - low > JUMP_PRECISION * high:
            level = (low + high) / 2
            if self._fits(self._turns_below(group, level)):
                low = level
            else:
                high = level
        return self._turns_below(group, low)

    def _turns_below(self, group: list[str], level: float) -> dict[str, int]:
        """How many replicas each takes before anybody takes one at `level` or above it."""
        found = {}
        for name in group:
            count = int(level * self._claims[name].weight / self._size[name])
            while self._level(name, count) >= level:  # what rounding has added, or taken
                count -= 1
            while self._level(name, count + 1) < level:
                count += 1
            found[name] = max(0, count - self.given[name])
        return found

    def _level(self, name: str, count: int) -> float:
        """What a claim would have with `count` replicas, by its weight; who has least goes first."""
        return count * self._size[name] / self._claims[name].weight

    def _fits(self, counts: Mapping[str, int]) -> bool:
        used: dict[str, float] = {}
        for name, count in counts.items():
            for resource, amount in self._claims[name].needs.items():
                used[resource] = used.get(resource, 0.0) + count * amount
        return all(self._left.get(resource, 0.0) + SLACK >= amount for resource, amount in used.items() if amount)

    def _take(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self.given[name] += count
            for resource, amount in self._claims[name].needs.items():
                self._left[resource] = self._left.get(resource, 0.0) - count * amount


def _size(claim: Claim, capacity: Mapping[str, float]) -> float:
    """The share of the cluster that one replica takes, by the resource of which it takes most."""
    shares = (amount / capacity[r] for r, amount in claim.needs.items() if capacity.get(r, 0.0) > 0)
    return max(SLACK, max(shares, default=0.0))
