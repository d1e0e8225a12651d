"""Whether a request can be answered in time at all, judged when it arrives.

A lower bound, from what one gateway knows: it is told late and not everything, and a request that was refused wrongly
is lost, while one that was admitted wrongly is refused by the replica, which knows more. Predictions were measured on
one machine and device, replicas may run on faster ones; so they are corrected by what answers say (`Pace`), and nothing
is refused before the first answer or long after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from cluster.errors import DeadlineExceeded

FORGET_S = 5.0  # predictions that no answer has confirmed for so long refuse nothing
PACE_GAIN = 0.2  # weight of a new answer


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How long one version's work takes.

    Attributes:
        max_rows: Of one batch.
        run_s: Predicted seconds for a batch of n rows; 0 where nothing was measured.
        pace: What batches really take, as a share of `run_s`.
        full_s: Seconds of a full batch.
        row_s: Seconds a row takes at worst, in whatever batch; for a quick bound from above.
    """

    max_rows: int
    run_s: Callable[[int], float]
    pace: float = 1.0
    full_s: float = field(init=False)
    row_s: float = field(init=False)

    def __post_init__(self) -> None:
        full_s = self.pace * self.run_s(self.max_rows)
        object.__setattr__(self, "full_s", full_s)
        object.__setattr__(self, "row_s", max(self.pace * self.run_s(1), full_s / self.max_rows))

    def work_s(self, rows: int) -> float:
        """Seconds one replica computes `rows` rows in, in batches as full as they can be."""
        full, rest = divmod(rows, self.max_rows)
        return full * self.full_s + (self.pace * self.run_s(rest) if rest else 0.0)

    def needs_s(self, busy_s: Sequence[float], rows_ahead: int, rows: int) -> float:
        """Seconds until a request of `rows` rows is answered, at best.

        Args:
            busy_s: Per replica, of which there is at least one: seconds of work that it has.
            rows_ahead: Rows that wait for any of them, and go first.
        """
        # The last, partial batch ahead may have room for this request, so only full ones go before it; and all replicas
        # but the one that takes it may still be busy with one of those.
        before = max(0, rows_ahead // self.max_rows - (len(busy_s) - 1))
        return _free_after_s(busy_s, before * self.full_s) + self.pace * self.run_s(rows)


class Pace:
    """Keeps `arrivals` at what batches really take; never at more than was predicted."""

    __slots__ = ("_least_known_s", "_told_s", "arrivals")

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self._told_s = -inf  # when an answer was told last
        self._least_known_s = max(FORGET_S, 3 * arrivals.full_s)

    def took(self, rows: int, seconds: float, now_s: float) -> None:
        """A batch of `rows` rows took so long; 0 rows: nobody knows how many there were."""
        arrivals = self.arrivals
        predicted_s = arrivals.run_s(rows) if rows else 0.0
        if predicted_s <= 0:
            return
        seen = min(1.0, seconds / predicted_s)
        pace = seen if not self.known(now_s) else arrivals.pace + PACE_GAIN * (seen - arrivals.pace)
        self._told_s = now_s
        if abs(pace - arrivals.pace) > 0.02 * arrivals.pace:
            self.arrivals = replace(arrivals, pace=pace)

    def known(self, now_s: float) -> bool:
        """Whether predictions can be trusted."""
        return now_s - self._told_s <= self._least_known_s

    def forget(self) -> None:
        """Begin anew: there is a replica that may be faster."""
        self._told_s = -inf


def too_late(left_s: float, needs_s: float) -> DeadlineExceeded:
    """The refusal of a request that has `left_s` seconds left and needs more."""
    return DeadlineExceeded(
        f"deadline: {max(0.0, left_s) * 1e3:.0f} ms are left, the answer is expected to take {needs_s * 1e3:.0f} ms"
    )


def _free_after_s(busy_s: Sequence[float], work_s: float) -> float:
    """When the first replica is free once `work_s` seconds of work were divided so that this is as early as can be."""
    total_s = work_s
    ordered = sorted(busy_s)
    for count, each_s in enumerate(ordered, 1):
        total_s += each_s
        level_s = total_s / count
        if count == len(ordered) or level_s <= ordered[count]:
            return level_s
    raise ValueError("expected at least one replica")
