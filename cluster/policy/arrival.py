"""Whether a request can be answered in time at all, judged when it arrives.

A lower bound, from what one gateway knows: it is told late and not everything, and a request that was refused wrongly
is lost, while one that was admitted wrongly is refused by the replica, which knows more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How long one version's work takes.

    Attributes:
        max_rows: Of one batch.
        run_s: Predicted seconds for a batch of n rows; 0 where nothing was measured.
        full_s: Seconds of a full batch.
        row_s: Seconds a row takes at worst, in whatever batch; for a quick bound from above.
    """

    max_rows: int
    run_s: Callable[[int], float]
    full_s: float = field(init=False)
    row_s: float = field(init=False)

    def __post_init__(self) -> None:
        full_s = self.run_s(self.max_rows)
        object.__setattr__(self, "full_s", full_s)
        object.__setattr__(self, "row_s", max(self.run_s(1), full_s / self.max_rows))

    def work_s(self, rows: int) -> float:
        """Seconds one replica computes `rows` rows in, in batches as full as they can be."""
        full, rest = divmod(rows, self.max_rows)
        return full * self.full_s + (self.run_s(rest) if rest else 0.0)

    def needs_s(self, busy_s: Sequence[float], rows_ahead: int, rows: int) -> float:
        """Seconds until a request of `rows` rows is answered, at best.

        Args:
            busy_s: Per replica, of which there is at least one: seconds of work that it has.
            rows_ahead: Rows that wait for any of them, and go first.
        """
        # The last, partial batch ahead may have room for this request, so only full ones go before it; and all replicas
        # but the one that takes it may still be busy with one of those.
        before = max(0, rows_ahead // self.max_rows - (len(busy_s) - 1))
        return _free_after_s(busy_s, before * self.full_s) + self.run_s(rows)


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
