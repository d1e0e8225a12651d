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

from cluster.errors import InvalidRequest

SLACK = 1e-6  # resources are sums of decimal fractions


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
    """Replicas given so far and what is left."""

    def __init__(self, claims: Mapping[str, Claim], capacity: Mapping[str, float]) -> None:
        self._claims = claims
        self._capacity = capacity
        self._left = dict(capacity)
        self.given = dict.fromkeys(claims, 0)

    def fill(self, goal: Callable[[Claim], int], patient: bool) -> None:
        """Give replicas one by one until everybody has its goal or nothing fits. `patient`: canaries wait for their
        stable versions; without it they have had their turn."""
        open_names = {name for name, claim in self._claims.items() if self.given[name] < goal(claim)}
        while open_names:
            ready = [
                name
                for name in open_names
                if not (patient and self._claims[name].after in open_names and self._claims[name].after != name)
            ] or list(open_names)  # canaries that wait for each other wait for nobody
            name = min(ready, key=self._turn)
            claim = self._claims[name]
            if all(self._left.get(r, 0.0) + SLACK >= amount for r, amount in claim.needs.items() if amount):
                for resource, amount in claim.needs.items():
                    self._left[resource] = self._left.get(resource, 0.0) - amount
                self.given[name] += 1
                if self.given[name] < goal(claim):
                    continue
            open_names.discard(name)

    def _turn(self, name: str) -> tuple[int, float, str]:
        """What goes first is smallest."""
        claim = self._claims[name]
        largest = max(
            (amount / self._capacity[r] for r, amount in claim.needs.items() if self._capacity.get(r, 0.0) > 0),
            default=0.0,
        )
        return -claim.priority, (self.given[name] + 1) * max(largest, SLACK) / claim.weight, name
