"""`python -m loadtest.endurance`: a quarter of an hour of bursts at two models that compete for two CPUs.

A Prism in a temporary home serves one network as `urgent` and as `patient`. A burst is more than one replica of either
should carry, so each wants a second; there is room for three, and `urgent` goes first: it gets its second, `patient`
is held to one until `urgent` gives its back. The load is the shipped scenario `endurance`, sent by `prism loadtest`.
What is kept: its report with a table by the minute, and its result, which `prism loadtest compare` reads. Both say what
each version wanted and was granted over time.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import yaml

from cluster.errors import OperatorError
from loadtest.bench.servers.prism import command
from loadtest.bench.work import prepare, write_artifact
from loadtest.page import Page
from loadtest.report import ms, page
from loadtest.result import LoadResult
from loadtest.samples import COLUMNS, Samples
from loadtest.scaling_live import SLOWER, row_seconds
from loadtest.server_metrics import ServerTimeline

LOAD = 0.5  # of what one core computes, on average; two and a half times that in a burst
SETTINGS = {"ray": {"num_cpus": 2}}
REPLICA = ("--cpus", "0.6", "--memory", "0", "--min", "1", "--max", "3")  # three find room, of the six that may be
OBJECTIVE_S = 0.25  # that both are scaled for; the scenario's is what no burst may break
SCALING = ("--objective-ms", f"{OBJECTIVE_S * 1e3:g}", "--down-after", "15")
MODELS = {"urgent": ("--priority", "1", "--weight", "2"), "patient": ("--priority", "0", "--weight", "1")}
VERDICTS = (0, 1, 2)  # exit codes of a load test that ran: kept, missed, invalid
OUTSIDE = 0.01  # a second is outside the objective if more than this share of its requests were late or failed


@dataclass(frozen=True, slots=True)
class Minute:
    """What one minute of the run was like. By version: "model:version".

    Attributes:
        outside: Its seconds outside the objective that the versions are scaled for.
        p99_s: Of the answers to requests due in it.
        replicas: Fewest and most that took work.
        wanted: Fewest and most that autoscaling asked for.
        held_s: Its seconds in which the version was granted less than it wanted.
        queue_rows: Most rows that waited at the server; None where it did not say.
    """

    start_s: float
    offered: int
    failed: int
    outside: dict[str, int]
    p99_s: dict[str, float]
    replicas: dict[str, tuple[int, int]]
    wanted: dict[str, tuple[int, int]]
    held_s: dict[str, int]
    queue_rows: float | None


def by_the_minute(result: LoadResult, samples: Samples) -> tuple[Minute, ...]:
    """The measured part of a run, cut into minutes; the last may be shorter."""
    begin_s = result.phases[0].start_s
    end_s = begin_s + result.load.duration_s
    starts_s = np.arange(begin_s, end_s, 60.0)
    return tuple(_minute(float(at_s), min(float(at_s) + 60.0, end_s), result, samples) for at_s in starts_s)


def _minute(start_s: float, end_s: float, result: LoadResult, samples: Samples) -> Minute:
    inside = samples.only((samples.due_s >= start_s) & (samples.due_s < end_s))
    p99_s = {}
    for index, version in enumerate(inside.versions):
        if version and (answered := inside.latency_s[inside.ok & (inside.version == index)]).size:
            p99_s[version] = float(np.quantile(answered, 0.99, method="inverted_cdf"))
    seconds, server = slice(int(start_s), int(np.ceil(end_s))), result.server
    queues = _known(server.queue_rows[seconds])
    return Minute(
        start_s=start_s,
        offered=len(inside),
        failed=int((~inside.ok).sum()),
        outside=_outside(inside),
        p99_s=p99_s,
        replicas=_extremes(server.replicas, seconds),
        wanted=_extremes(server.wanted, seconds),
        held_s={version: _held_s(server, version, seconds) for version in server.wanted},
        queue_rows=max(queues) if queues else None,
    )


def _outside(inside: Samples) -> dict[str, int]:
    """Seconds outside the objective by version; what failed and named none counts against each."""
    found = {}
    for index, version in enumerate(inside.versions):
        if not version:
            continue
        own = inside.only((inside.version == index) | (inside.version == 0))
        second = own.due_s.astype(int)
        late = ~own.ok | (own.latency_s > OBJECTIVE_S)
        found[version] = int((np.bincount(second, weights=late) > OUTSIDE * np.bincount(second)).sum())
    return found


def _extremes(rows: Mapping[str, Sequence[float | None]], seconds: slice) -> dict[str, tuple[int, int]]:
    """The least and the most of those seconds by version, where the server said."""
    known = {version: _known(row[seconds]) for version, row in rows.items()}
    return {version: (int(min(counts)), int(max(counts))) for version, counts in known.items() if counts}


def _held_s(server: ServerTimeline, version: str, seconds: slice) -> int:
    """Of those seconds the ones in which the version was granted less than it wanted."""
    pairs = zip(server.wanted[version][seconds], server.granted.get(version, ())[seconds], strict=False)
    return sum(wants is not None and granted is not None and granted < wants for wants, granted in pairs)


def keep(result: LoadResult, samples: Samples, out: Path) -> tuple[Path, Path]:
    """Write `endurance.html` and `endurance.json` into `out`, without the paths of the run's own folders."""
    result = replace(
        result,
        files={},
        load=replace(
            result.load, targets=tuple({**each, "sample": Path(each["sample"]).name} for each in result.load.targets)
        ),
    )
    report = page(result)
    add_minutes(report, result, by_the_minute(result, samples))
    out.mkdir(parents=True, exist_ok=True)
    files = (out / "endurance.html", out / "endurance.json")
    report.write(files[0])
    result.write(files[1])
    return files


def add_minutes(report: Page, result: LoadResult, minutes: Sequence[Minute]) -> None:
    """The table by the minute, and who was held back for how long, as part of `report`."""
    versions = sorted(result.server.replicas)
    report.section("By the minute")
    columns = ("seconds outside", "p99", "replicas", "wanted", "seconds held")
    report.table(
        ["minute", "offered", "failed", *(f"{column} {v}" for column in columns for v in versions), "most rows queued"],
        [
            [
                number,
                minute.offered,
                minute.failed,
                *(minute.outside.get(version, 0) for version in versions),
                *(ms(minute.p99_s.get(version)) for version in versions),
                *(_span(minute.replicas.get(version)) for version in versions),
                *(_span(minute.wanted.get(version)) for version in versions),
                *(minute.held_s.get(version, 0) for version in versions),
                "–" if minute.queue_rows is None else f"{minute.queue_rows:g}",
            ]
            for number, minute in enumerate(minutes, 1)
        ],
        f"A second is outside the objective that the versions are scaled for if more than {OUTSIDE:.0%} of its "
        f"requests failed or took longer than {ms(OBJECTIVE_S)}. Wanted is what autoscaling asked for; a second is "
        "held if the version was granted less.",
    )
    for version in versions:
        outside = sum(minute.outside.get(version, 0) for minute in minutes)
        held = sum(minute.held_s.get(version, 0) for minute in minutes)
        report.text(
            f"{version}: {outside} of {result.load.duration_s:g} s outside the objective, held to fewer replicas than "
            f"it wanted for {held} s."
        )


def read_kept(folder: Path) -> tuple[LoadResult, Samples]:
    """What `prism loadtest --out FOLDER` wrote. Raises: InvalidRequest."""
    result = LoadResult.read(folder / "result.json")
    with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in COLUMNS}
        return result, Samples(**columns, versions=tuple(arrays["versions"].tolist()))


@contextmanager
def serving(artifact: Path, utilisation: float) -> Iterator[Path]:
    """The home of a Prism that serves `artifact` under both names; stopped and removed in the end.

    Raises: SystemExit, with what a command said that failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="prism-endurance-"))
    home = folder / "home"
    try:
        settings = folder / "settings.yaml"
        settings.write_text(yaml.safe_dump(SETTINGS))
        command(home, "up", "--http-port", "0", "--grpc-port", "0", "--config", str(settings))
        for model, claims in MODELS.items():
            command(home, "publish", model, str(artifact))
            command(home, "deploy", f"{model}:1", *REPLICA, *SCALING, "--utilisation", f"{utilisation:g}", *claims)
        yield home
    finally:
        before = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)]
        command(home, "down", fine=range(256))
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


@click.command()
@click.option("--seconds", default=900.0, show_default=True, help="Of load, after the warm-up.")
@click.option("--rate", type=float, help="Requests per second on average.  [default: by this machine's speed]")
@click.option("--seed", type=int, help="Other arrivals of the same kind.")
@click.option("--utilisation", default=0.7, show_default=True, help="Of replicas; with less, little load competes.")
@click.option(
    "--work-dir", type=click.Path(path_type=Path, file_okay=False), default=Path("build/endurance"), show_default=True
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("loadtest/results"), show_default=True
)
def main(seconds: float, rate: float | None, seed: int | None, utilisation: float, work_dir: Path, out: Path) -> None:
    """Start a Prism, load it, stop it. Exit code: as `prism loadtest`, 0 if the objective was kept."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work_dir.mkdir(parents=True, exist_ok=True)
    prepared = prepare(SLOWER, work_dir)
    try:
        write_artifact(prepared)
    except OperatorError as error:
        raise click.ClickException(error.message) from None
    rate = rate or round(LOAD / row_seconds(prepared), 1)
    run_dir = work_dir / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    load: Sequence[str] = ("--scenario", "endurance", "--model", ",".join(MODELS), "--out", str(run_dir))
    load = (
        *load,
        "--rate",
        str(rate),
        "--duration",
        str(seconds),
        *(("--seed", str(seed)) if seed is not None else ()),
    )
    with serving(prepared.artifact, utilisation) as home:
        click.echo(f"{rate:g} requests a second on average, for {seconds:g} s")
        code = command(home, "loadtest", *load, fine=VERDICTS)
    if not (run_dir / "result.json").is_file():
        sys.exit(code)  # it has said why
    for file in keep(*read_kept(run_dir), out):
        click.echo(str(file))
    sys.exit(code)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _span(counts: tuple[int, int] | None) -> str:
    return "–" if counts is None else str(counts[0]) if counts[0] == counts[1] else f"{counts[0]}–{counts[1]}"


if __name__ == "__main__":
    main()
