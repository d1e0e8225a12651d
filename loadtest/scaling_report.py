"""The comparison of autoscaling policies for people: a table on the terminal and one page with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from cluster.sim.outcome import Outcome
from loadtest.page import Page
from loadtest.plots import Panel, stack
from loadtest.scaling_scenes import (
    BATCH_ROWS,
    CONTESTANTS,
    COSTS,
    MAX_REPLICAS,
    OBJECTIVE_S,
    PATTERNS,
    RAY_TUNED,
    Figures,
    Scene,
)

COLUMNS = (
    *("rate", "start-up", "arrivals", "policy"),
    *("s outside", "replica-s", "changes", "flaps", "failed", "worst p99"),
)
EVERY_S = 3  # seconds between the points of a plot
NOTES = (
    "Every policy sees the same arrivals, cost curve, batching, coalescing and start-up times; only the number of "
    "replicas is decided differently. A second is outside the objective if more than 1 % of the requests due in it "
    "were not answered within it. Replica-seconds count from when a replica is ordered until it is gone. `prompt` "
    "is no policy: it sees what comes, orders without regard to cost, but keeps nothing to spare; its seconds outside "
    "are those of replicas' starting.",
    "A flap is a change of direction within a minute of the one before. Prism's are all upwards: it keeps what came "
    "for a minute at least, so that only load that rises again soon after a replica has gone makes one.",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Prism next to Ray Serve's default for one rate and start-up time, over all seeds of one pattern, or of all."""

    rate: float
    start_s: float
    prism_outside: int
    ray_outside: int
    prism_replica_seconds: float
    ray_replica_seconds: float
    pattern: str = ""

    @property
    def met(self) -> bool:
        """At most half the seconds outside the objective at no more replica-seconds."""
        return 2 * self.prism_outside <= self.ray_outside and self.prism_replica_seconds <= self.ray_replica_seconds

    def __str__(self) -> str:
        return (
            f"{'met' if self.met else 'MISSED'} {f'on {self.pattern} alone ' if self.pattern else ''}"
            f"at {self.rate:g}/s with replicas that take {self.start_s:g} s to start: "
            f"{self.prism_outside} s outside the objective against {self.ray_outside} of Ray Serve's default, "
            f"{self.prism_replica_seconds:,.0f} replica-seconds against {self.ray_replica_seconds:,.0f}"
        )


def verdicts(found: Sequence[Figures]) -> list[Verdict]:
    """Per rate and start-up time one over all patterns, then one for each on its own."""
    result = []
    for rate, start_s in dict.fromkeys((f.scene.rate, f.scene.start_s) for f in found):
        runs = [f for f in found if (f.scene.rate, f.scene.start_s) == (rate, start_s)]
        patterns = list(dict.fromkeys(f.scene.pattern for f in runs))
        for pattern in ("", *patterns):
            prism, ray = (
                [f for f in runs if f.contestant == name and pattern in ("", f.scene.pattern)]
                for name in ("prism", "ray")
            )
            result.append(
                Verdict(
                    rate,
                    start_s,
                    sum(f.outside for f in prism),
                    sum(f.outside for f in ray),
                    sum(f.replica_seconds for f in prism),
                    sum(f.replica_seconds for f in ray),
                    pattern,
                )
            )
    return result


def worth_saying(judged: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts over all patterns, and of the others those that were missed."""
    return [verdict for verdict in judged if not verdict.pattern or not verdict.met]


def rows(found: Sequence[Figures]) -> list[list[str]]:
    """The table's cells, scenes in order, contestants within."""
    return [
        [
            f"{f.scene.rate:g}/s",
            f"{f.scene.start_s:g} s",
            f.scene.pattern,
            f.contestant,
            str(f.outside),
            f"{f.replica_seconds:,.0f}",
            str(f.changes),
            str(f.flaps),
            str(f.failed),
            "more than 1 % failed" if f.p99_s is None else f"{f.p99_s * 1e3:,.0f} ms",
        ]
        for f in found
    ]


def settings(rates: Sequence[float], seconds: int, seeds: Sequence[int]) -> dict[str, str]:
    """What the comparison was made with."""
    means = " or ".join(f"{rate:g}" for rate in rates)
    points = ", ".join(f"{r}: {s * 1e3:g}" for r, s in zip(COSTS.rows, COSTS.seconds, strict=True))
    return {
        "arrivals": f"1.0 means {means} requests a second, for {seconds} s, seeds {', '.join(map(str, seeds))}",
        **{f"  {name}": about for name, (about, _) in PATTERNS.items()},
        "cost curve": f"ms by rows: {points}; batches of at most {BATCH_ROWS}",
        "objective": f"99 % of each second's requests within {OBJECTIVE_S * 1e3:g} ms",
        "replicas": f"1 to {MAX_REPLICAS}",
        **{name: about for name, (about, _) in CONTESTANTS.items()},
        "tuned settings": ", ".join(f"{name} {value:g}" for name, value in asdict(RAY_TUNED).items()),
    }


def page(
    found: Sequence[Figures], shown: Mapping[tuple[Scene, str], Outcome], about: Mapping[str, str], command: str
) -> Page:
    """The whole report; `shown` are the runs to draw, all contestants of a scene with one seed."""
    result = Page("Autoscaling, simulated", "Prism's policy and Ray Serve's on the same arrivals")
    judged = verdicts(found)
    for verdict in worth_saying(judged):
        counts = verdict.rate == judged[0].rate  # the others are told, and decide nothing
        result.verdict("good" if verdict.met else "bad" if counts else "warn", str(verdict))
    result.section("Seconds outside the objective and what they cost", NOTES[0])
    result.table(COLUMNS, rows(found), NOTES[1])
    for scene in dict.fromkeys(scene for scene, _ in shown):
        runs = {name: shown[scene, name] for name in CONTESTANTS if (scene, name) in shown}
        result.section(f"{scene.pattern}, start-up {scene.start_s:g} s", PATTERNS[scene.pattern][0])
        result.chart(_chart(runs))
    result.section("Made with")
    result.pairs(about)
    result.code(command)
    return result


def _chart(runs: Mapping[str, Outcome]) -> str:
    first = next(iter(runs.values()))
    at = range(0, first.seconds, EVERY_S)
    return stack(
        list(at),
        [
            Panel("requests due a second", {"rate": [first.rates[i] for i in at]}),
            Panel("replicas that answer", {n: [o.instants[i].ready for i in at] for n, o in runs.items()}, "step"),
            Panel("rows waiting or in work", {n: [o.instants[i].waiting_rows for i in at] for n, o in runs.items()}),
            Panel(
                "share of requests late, %",
                {n: [100 * max(o.late[i : i + EVERY_S]) for i in at] for n, o in runs.items()},
            ),
        ],
    )
