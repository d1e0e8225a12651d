"""`python -m loadtest.scaling`: autoscaling policies side by side in virtual time. Nothing is started."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.table import Table

from cluster.errors import InvalidRequest
from cluster.sim.outcome import Outcome
from loadtest import scaling_report as report
from loadtest.scaling_scenes import CONTESTANTS, PATTERNS, Figures, Scene, figures, play

EPILOG = """\b
Examples:
  python -m loadtest.scaling                                     the table in loadtest/results; some minutes of CPU
  python -m loadtest.scaling --patterns step --seeds 1 --start 5 --out /tmp
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--patterns", default=",".join(PATTERNS), show_default=True, help="Arrivals, separated by commas.")
@click.option("--policies", default=",".join(CONTESTANTS), show_default=True, help="Who decides.")
@click.option("--seeds", default="1,2,3", show_default=True, help="One run each.")
@click.option("--start", "starts", default="5,20", show_default=True, help="Seconds a replica takes to start.")
@click.option(
    "--rate",
    "rates",
    default="100,200",
    show_default=True,
    help="Requests per second that 1.0 means in a pattern.",
)
@click.option("--seconds", default=600, show_default=True, help="Simulated time of a run.")
@click.option("--jobs", default=os.cpu_count() or 1, help="Runs beside each other.  [default: one a core]")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("loadtest/results"), show_default=True
)
def main(patterns: str, policies: str, seeds: str, starts: str, rates: str, seconds: int, jobs: int, out: Path) -> None:
    """Compare Prism's ScalePolicy with Ray Serve's default policy on simulated load.

    Writes scaling-simulated.html and .json. Exit code 1 if Prism's policy is outside the objective for more than half
    the seconds that Ray Serve's default is, or uses more replica-seconds, on all patterns together or on one of them,
    at the first rate. At the others the same is said, and decides nothing.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # Ray's, about a setting that has no other way
    try:
        each_rate = _numbers(rates, "rate")
        scenes = [
            Scene(pattern, rate, start_s, seconds)
            for rate in each_rate
            for start_s in _numbers(starts, "start")
            for pattern in _chosen(patterns, PATTERNS, "patterns")
        ]
        names = _chosen(policies, CONTESTANTS, "policies")
        numbers = [int(seed) for seed in _numbers(seeds, "seeds")]
    except InvalidRequest as error:
        raise click.UsageError(error.message) from None
    console = Console()
    with console.status("simulating") as status, side_by_side(jobs) as play_all:
        found, shown = compare(scenes, names, numbers, play_all, lambda text: status.update(text))
    table = Table(*report.COLUMNS, title="Autoscaling, simulated", title_justify="left")
    for cells in report.rows(found):
        table.add_row(*cells)
    console.print(table)
    judged = report.verdicts(found) if {"prism", "ray"} <= set(names) else []
    for verdict in report.worth_saying(judged):
        console.print(str(verdict), highlight=False, soft_wrap=True)
    command = shlex.join(["python", "-m", "loadtest.scaling", *sys.argv[1:]])
    about = report.settings(each_rate, seconds, numbers)
    out.mkdir(parents=True, exist_ok=True)
    whole = {"command": command, "settings": about, "figures": [asdict(f) for f in found]}
    whole["verdicts"] = [{**asdict(verdict), "met": verdict.met} for verdict in judged]
    (out / "scaling-simulated.json").write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2) + b"\n")
    report.page(found, shown, about, command).write(out / "scaling-simulated.html")
    console.print(f"report: {out / 'scaling-simulated.html'}", highlight=False, soft_wrap=True)
    sys.exit(0 if all(verdict.met for verdict in judged if verdict.rate == each_rate[0]) else 1)


PlayAll = Callable[[Scene, str, Sequence[int]], Iterator[Outcome]]


@contextmanager
def side_by_side(jobs: int) -> Iterator[PlayAll]:
    """Plays one contestant's seeds in a scene, up to `jobs` runs at once in processes of their own; 1: in this one."""
    if jobs <= 1:
        yield lambda scene, name, seeds: map(partial(play, scene, name), seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield lambda scene, name, seeds: pool.map(partial(play, scene, name), seeds)


def compare(
    scenes: Sequence[Scene], names: Sequence[str], seeds: Sequence[int], play_all: PlayAll, say: Callable[[str], None]
) -> tuple[list[Figures], dict[tuple[Scene, str], Outcome]]:
    """Every contestant in every scene, and of the first rate's and start-up time's scenes the first seed's runs."""
    runs = [(scene, name, play_all(scene, name, seeds)) for scene in scenes for name in names]  # all are ordered here
    found: list[Figures] = []
    shown: dict[tuple[Scene, str], Outcome] = {}
    for scene, name, playing in runs:
        say(f"{scene.pattern} at {scene.rate:g}/s, start-up {scene.start_s:g} s: {name}")
        outcomes = list(playing)
        found.append(figures(scene, name, seeds, outcomes))
        if (scene.rate, scene.start_s) == (scenes[0].rate, scenes[0].start_s):
            shown[scene, name] = outcomes[0]
    return found, shown


def _chosen(text: str, table: Collection[str], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = list(table)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InvalidRequest(f"{what}: expected some of {', '.join(known)}, got {text!r}")
    return names


def _numbers(text: str, what: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InvalidRequest(f"{what}: expected numbers separated by commas, got {text!r}") from None


if __name__ == "__main__":
    main()
