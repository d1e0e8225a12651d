"""How many replicas a version should have.

How it works. Four needs are reckoned from what the replicas measured, and the largest counts:

- *steady*: the rate that is expected when a replica ordered now would answer, at no more than `target_utilisation` of
  what replicas can do. Expected is what arrives now, or more if it has been climbing beyond doubt. If that is a single
  replica more, and what is there can do the work meanwhile, the need must last for three seconds: noise passes.
- *queue*: what will still wait at that time, though everything ordered by then answers, worked off within `drain_s`.
  What was ordered and is still starting is counted, so nothing is ordered twice.
- *bursts*: the rate plus its own spread over a second or so, at full utilisation, so that short bursts queue no longer
  than the objective allows.
- *alone*: a second replica, if the first would have less free than two at the target utilisation have together. Small
  rates multiply at once, and while another starts, or the only one is replaced, there is nobody else.

Up at once. Down to the most that was needed within the last hold time, which starts at `down_after_s`, doubles when
going down turns out to have been too early, and falls back when it no longer does: load that comes in bursts keeps its
replicas, load that went away does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf, sqrt

from cluster.policy.load import Load

FAR = 1e6  # more replicas than anybody has
RATE_EVERY_S = 1.0  # rates are remembered so far apart
RATES_KEPT = 24
TREND_LEAST = 12  # fewer rates show a climb where there is none, the more so as the first are of a version's start
HOLD_MOST = 8  # times the least hold time
HOLD_STARTS = 3  # a need is remembered for at least so many start-ups: what is dear to get back is kept for longer
LOOK_AHEAD_MOST_S = 60.0
ALONE = 0.4  # share of its capacity that a lone replica may always be given, if the target is no lower
SURE_S = 3.0  # one replica more for the rate alone is ordered once it was asked for all the time for so long
ALONE_AGAIN = 0.7  # of that: what a replica must be given less than to be left alone again
USUAL_S = 10.0  # a lone replica is judged by the mean rate of so long: for what noise adds there are the bursts


@dataclass(frozen=True, slots=True)
class Memory:
    """What the policy remembers between decisions; times are on the clock of `decide`.

    Attributes:
        peaks: (when, replicas needed), newest last: every need that none after it reached.
        ordered: (when, how many) of the replicas that were ordered and have not reported yet.
        rates: (when, rows per second), oldest first.
        hold_s: How long a need is remembered now; 0 before the first decision.
        down_after_s: The policy's, from which that grew: another one starts anew.
        lowered: When it last went down, and from how many.
        idle_since_s: Since when nothing has come.
    """

    peaks: tuple[tuple[float, int], ...] = ()
    ordered: tuple[tuple[float, int], ...] = ()
    rates: tuple[tuple[float, float], ...] = ()
    hold_s: float = 0.0
    down_after_s: float = 0.0
    lowered: tuple[float, int] | None = None
    since_s: float | None = None
    idle_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Replicas wanted, why, and what to remember."""

    replicas: int
    reason: str
    memory: Memory


@dataclass(frozen=True, slots=True)
class ScalePolicy:
    """See the module's text.

    Attributes:
        min_replicas: Never fewer, 0 included.
        max_replicas: Never more.
        target_utilisation: Share of its capacity a replica may be given.
        objective_s: A row should be answered within this time.
        down_after_s: The least time that a need is remembered for.
        idle_after_s: With min_replicas 0, the last replica goes after so long without a row.
        deadline_s: Requests do not wait for longer, so a queue cannot grow beyond what comes in so long.
        drain_s: A queue that a new replica finds should be worked off within this time, or within an eighth of a
            start-up if that is longer: a queue that grew for a minute is not worth replicas for two seconds.
        burst_deviations: Standard deviations of the rate that are kept free.
        margin: Going down leaves this share of a replica free, so that noise cannot bring it back.
        start_s: How long a replica takes to start, until one has reported it.
    """

    min_replicas: int
    max_replicas: int
    target_utilisation: float = 0.7
    objective_s: float = 0.5
    down_after_s: float = 30.0
    idle_after_s: float = 60.0
    deadline_s: float = 30.0
    drain_s: float = 2.0
    burst_deviations: float = 2.0
    margin: float = 0.15
    start_s: float = 5.0

    def decide(self, load: Load, memory: Memory, now_s: float) -> Verdict:
        """The count to have from now on. Pure."""
        memory = self._remembered(memory, load, now_s)
        if load.replicas == 0 or load.target == 0:
            return self._asleep(load, memory)
        idle = load.rows_per_s == 0 and load.queue_rows + load.backlog_rows == 0
        idle_since_s = (memory.idle_since_s if memory.idle_since_s is not None else now_s) if idle else None
        memory = replace(memory, idle_since_s=idle_since_s)
        if self.min_replicas == 0 and idle_since_s is not None and now_s - idle_since_s >= self.idle_after_s:
            return Verdict(0, f"down: no request for {self.idle_after_s:.0f} s", Memory())
        capacity = self.capacity(load)
        needed, why = self._needed(load, memory, now_s, capacity)
        if not why and load.target < needed <= load.target + 1 and not self._sure(load, memory, now_s, capacity):
            needed = float(load.target)
        figures = (
            f"{load.rows_per_s:.0f} rows/s, {load.queue_rows + load.backlog_rows:.0f} waiting, "
            f"{capacity:.0f} rows/s per replica{why}"
        )
        wanted = self._bound(ceil(needed - 1e-9), 1)
        if wanted > load.target:
            return self._up(wanted, f"up: {figures}", load, memory, now_s)
        return self._keep_or_lower(needed, figures, load, memory, now_s)

    def capacity(self, load: Load) -> float:
        """Rows a second one replica can answer: as reported, else as measured while it was busy enough to tell."""
        if load.capacity_rows_per_s > 0:
            return load.capacity_rows_per_s
        if load.busy_share >= 0.3 and load.replicas:
            return load.done_per_s / load.replicas / load.busy_share
        return 0.0

    @property
    def alone_utilisation(self) -> float:
        """Share of its capacity that a lone replica may be given."""
        return max(2 * self.target_utilisation - 1, min(self.target_utilisation, ALONE))

    # -- inside --

    def _needed(self, load: Load, memory: Memory, now_s: float, capacity: float) -> tuple[float, str]:
        """Replicas needed, fractions included, and what decided it if that is not the rate."""
        if capacity <= 0:
            return load.busy_share * load.replicas / self.target_utilisation, ", capacity unknown"
        lead_s = load.start_s or self.start_s
        slope, spread = _trend(memory.rates)
        ahead = load.rows_per_s + max(0.0, slope) * min(lead_s, LOOK_AHEAD_MOST_S)
        steady = ahead / self.target_utilisation / capacity
        bursts = (ahead + self.burst_deviations * spread) / capacity
        left = self._left_waiting(load, memory, now_s, capacity, lead_s)
        drain_s = max(self.drain_s, lead_s / 8)
        queue = ahead / capacity + left / capacity / drain_s if left > 0 else 0.0
        usual = _last(memory.rates, now_s, USUAL_S)
        most = self.alone_utilisation * (ALONE_AGAIN if load.target > 1 else 1.0)
        two = 1.99 - self.margin  # not a third, with the margin
        alone = min(two, sum(usual) / max(1, len(usual)) / capacity / most)
        needed, why = max((steady, ""), (bursts, ", bursts"), (queue, ", queue"), (alone, ", too much for one alone"))
        return min(needed, FAR), why

    def _sure(self, load: Load, memory: Memory, now_s: float, capacity: float) -> bool:
        """Whether a need for one more has lasted, or climbs, or what is there is nearly full already."""
        least = min(_last(memory.rates, now_s, SURE_S), default=load.rows_per_s)
        each = self.target_utilisation * capacity
        full = load.rows_per_s > load.target * (each + capacity) / 2
        return full or least > load.target * each or _trend(memory.rates)[0] > 0

    def _left_waiting(self, load: Load, memory: Memory, now_s: float, capacity: float, lead_s: float) -> float:
        """Rows that will still wait, beyond what the objective allows, when a replica ordered now would answer."""
        waiting = load.queue_rows + load.backlog_rows
        done = load.replicas * capacity * lead_s
        for ordered_s, count in memory.ordered:
            done += count * capacity * max(0.0, lead_s - max(0.0, ordered_s + lead_s - now_s))
        coming = max(load.target, load.replicas)
        most = max(waiting, load.rows_per_s * self.deadline_s)
        left = min(most, waiting + load.rows_per_s * lead_s - done)
        return left - coming * capacity * self.objective_s / 2

    def _up(self, wanted: int, reason: str, load: Load, memory: Memory, now_s: float) -> Verdict:
        lowered, hold_s = memory.lowered, memory.hold_s
        if lowered is not None and now_s - lowered[0] <= 4 * hold_s:
            hold_s = min(2 * hold_s, HOLD_MOST * self._least_hold_s(load))  # it should have been kept
            lowered = None
        remembered = replace(
            memory,
            peaks=_with_peak(memory.peaks, now_s, wanted),
            ordered=(*memory.ordered, (now_s, wanted - load.target)),
            hold_s=hold_s,
            lowered=lowered,
        )
        return Verdict(wanted, reason, remembered)

    def _keep_or_lower(self, needed: float, figures: str, load: Load, memory: Memory, now_s: float) -> Verdict:
        peaks = _with_peak(memory.peaks, now_s, max(1, ceil(needed + self.margin)))
        hold_s, lowered = memory.hold_s, memory.lowered
        if lowered is not None and now_s - lowered[0] > 4 * hold_s:
            hold_s, lowered = max(hold_s / 2, self._least_hold_s(load)), (now_s, lowered[1])
        memory = replace(memory, peaks=peaks, hold_s=hold_s, lowered=lowered)
        target = self._bound(load.target, 1)
        within = self._bound(max(count for at_s, count in peaks), 1)
        assert memory.since_s is not None
        if within >= target or now_s - memory.since_s < hold_s:
            waits = f", fewer would do, kept for {hold_s:.0f} s" if peaks[-1][1] < target else ""
            return Verdict(target, f"keep: {figures}{waits}", memory)
        memory = replace(memory, lowered=(now_s, target), ordered=())
        return Verdict(within, f"down: {figures}, no more needed for {hold_s:.0f} s", memory)

    def _remembered(self, memory: Memory, load: Load, now_s: float) -> Memory:
        """The memory without what is past."""
        grown_s = memory.hold_s if memory.down_after_s == self.down_after_s else 0.0
        hold_s = max(grown_s, self._least_hold_s(load))
        since_s = memory.since_s if memory.since_s is not None else now_s
        rates = memory.rates
        if load.replicas and (not rates or now_s - rates[-1][0] >= RATE_EVERY_S - 1e-6):
            rates = (*rates, (now_s, load.rows_per_s))[-RATES_KEPT:]
        missing = max(0, load.target - load.replicas)
        ordered: list[tuple[float, int]] = []
        for at_s, count in reversed(memory.ordered):  # the oldest orders are filled first
            if missing > 0:
                ordered.append((at_s, min(count, missing)))
                missing -= count
        peaks = tuple(peak for peak in memory.peaks if now_s - peak[0] <= hold_s)
        return replace(
            memory,
            peaks=peaks,
            ordered=tuple(reversed(ordered)),
            rates=rates,
            hold_s=hold_s,
            down_after_s=self.down_after_s,
            since_s=since_s,
        )

    def _least_hold_s(self, load: Load) -> float:
        return max(self.down_after_s, HOLD_STARTS * load.start_s)

    def _asleep(self, load: Load, memory: Memory) -> Verdict:
        if load.wanted:
            reason = "up: requests wait for a version at zero" if load.target == 0 else "starting; requests wait"
            return Verdict(self._bound(max(1, load.target), 1), reason, memory)
        return Verdict(self._bound(load.target, self.min_replicas), "no replica has reported yet", memory)

    def _bound(self, replicas: int, least: int) -> int:
        return max(self.min_replicas, min(max(replicas, least), self.max_replicas))


def _with_peak(peaks: tuple[tuple[float, int], ...], now_s: float, needed: int) -> tuple[tuple[float, int], ...]:
    """The peaks with one more; those that it reaches are forgotten."""
    return (*(peak for peak in peaks if peak[1] > needed), (now_s, needed))


def _last(rates: tuple[tuple[float, float], ...], now_s: float, span_s: float) -> list[float]:
    """The rates of the last `span_s`."""
    return [rate for at_s, rate in rates if now_s - at_s < span_s]


def _trend(rates: tuple[tuple[float, float], ...]) -> tuple[float, float]:
    """Rows per second that the rate gains each second, 0 unless beyond doubt, and its spread around the line."""
    count = len(rates)
    if count < 5:
        return 0.0, 0.0
    mean_t = sum(at_s for at_s, _ in rates) / count
    mean_r = sum(rate for _, rate in rates) / count
    span = sum((at_s - mean_t) ** 2 for at_s, _ in rates)
    slope = sum((at_s - mean_t) * (rate - mean_r) for at_s, rate in rates) / span if span else 0.0
    left = sum((rate - mean_r - slope * (at_s - mean_t)) ** 2 for at_s, rate in rates)
    spread = sqrt(left / (count - 2))
    error = spread / sqrt(span) if span else inf
    return (slope if count >= TREND_LEAST and slope > 3 * error else 0.0), spread
