"""`prism loadtest`: run a scenario, find the highest rate, compare two runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.loadtest_crosscheck import crosscheck
from cluster.cli.output import emit, home_option, json_option
from cluster.errors import OperatorError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from cluster.cli.loadtest_home import Aim
    from loadtest import LoadResult, Progress
    from loadtest.baseline import Against, SideBySide
    from loadtest.search import KneeResult, Try

EPILOG = """\b
Examples:
  prism loadtest --scenario smoke --model classifier
  prism loadtest --scenario step --model classifier --rate 20 --out report/
  prism loadtest --find-max --slo 'p99<50ms' --model classifier@stable
  prism loadtest compare before/result.json after/result.json

\b
Exit code: 0 objective kept, 1 objective missed (or an error), 2 invalid run: the load
generator was late, full or starved, so the figures say nothing about the server.
"""


@click.group(invoke_without_command=True, epilog=EPILOG)
@click.option("--scenario", "source", default="smoke", show_default=True, help="Scenario file, or a shipped name.")
@click.option("--host", help="Server to load, e.g. http://127.0.0.1:8000.  [default: the one running in --home]")
@click.option("--model", help="Model to ask: name, name:version or name@label.")
@click.option("--sample", type=click.Path(exists=True, resolve_path=True), help="Request bodies from this .npz.")
@click.option("--rate", type=float, help="Requests per second that 1.0 means in the scenario.")
@click.option("--duration", type=float, help="Seconds for all phases together.")
@click.option("--seed", type=int, help="Other arrivals of the same kind.")
@click.option("--processes", type=int, help="Load generator processes.")
@click.option("--slo", help="Objective instead of the scenario's, e.g. 'p99<50ms, errors<0.1%'.")
@click.option("--find-max", is_flag=True, help="Search the highest rate that keeps the objective.")
@click.option("--baseline", type=click.Choice(["ray-serve", "ray-serve-haproxy"]), help="Load this as well; compare.")
@click.option(
    "--artifact",
    type=click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True),
    help="What the baseline serves.  [default: what the model in --home serves]",
)
@click.option("--no-events", is_flag=True, help="Leave out what the scenario does to Prism meanwhile.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the report.")
@click.option("--list", "list_shipped", is_flag=True, help="List the scenarios that come with Prism.")
@home_option
@json_option
@click.pass_context
def loadtest(
    context: click.Context,
    source: str,
    host: str | None,
    model: str | None,
    sample: str | None,
    rate: float | None,
    duration: float | None,
    seed: int | None,
    processes: int | None,
    slo: str | None,
    find_max: bool,
    baseline: str | None,
    artifact: Path | None,
    no_events: bool,
    out: Path | None,
    list_shipped: bool,
    home: Path,
    as_json: bool,
) -> None:
    """Load a server with requests on a fixed schedule and report what it did.

    Arrivals never wait for answers, and latency counts from the moment a request was due.
    """
    if context.invoked_subcommand is not None:
        return
    _need_extra()
    from cluster.cli.loadtest_home import aim
    from loadtest.objective import Objective
    from loadtest.scenario import read_scenario

    if list_shipped:
        _list(as_json)
        return
    scenario = read_scenario(
        source,
        rate=rate,
        duration_s=duration,
        model=model,
        sample=sample,
        seed=seed,
        processes=processes,
        objective=Objective.parse(slo, "slo") if slo else None,
    )
    if no_events or find_max:
        scenario = replace(scenario, events=())
    if artifact and not baseline:
        raise click.UsageError("--artifact is what the baseline serves: give --baseline too")
    if baseline and find_max:
        raise click.UsageError("--baseline compares one scenario: leave out --find-max")
    out = out or Path(f"loadtest-{scenario.name}-{datetime.now():%Y%m%d-%H%M%S}")
    _check_writable(out)
    with aim(scenario, host, home, baseline, artifact) as aimed:
        if find_max:
            knee = _find(aimed, out, as_json)
            emit(asdict(knee), as_json, _knee_text(knee, out))
            sys.exit(0 if knee.rate is not None else 1)
        if aimed.against is not None:
            both = _run_both(aimed, aimed.against, out, as_json)
            emit(asdict(both), as_json, _both_text(both))
            sys.exit(max(both.prism.verdict.exit_code, 2 if both.baseline.verdict.status == "invalid" else 0))
        result = _run(aimed, out, as_json)
    emit(asdict(result), as_json, _text(result))
    sys.exit(result.verdict.exit_code)


@loadtest.command(epilog="\b\nExample:\n  prism loadtest compare before/result.json after/result.json --out diff.html")
@click.argument("a", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("b", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with charts here.")
@json_option
def compare(a: Path, b: Path, out: Path | None, as_json: bool) -> None:
    """Two results side by side: B over A, and what is only noise."""
    _need_extra()
    from loadtest.compare import compare as compare_results
    from loadtest.compare import comparison_page, rows

    found = compare_results(a, b)
    if out is not None:
        try:
            comparison_page(found).write(out)
        except OSError as error:
            raise OperatorError(f"out: cannot write {out} ({error.strerror})") from None
    lines = [f"note: {warning}" for warning in found.warnings]
    table = [["", "A", "B", "B/A", "95 % interval", ""], *rows(found)]
    emit(asdict(found), as_json, "\n".join([*lines, _aligned(table)]))


loadtest.add_command(crosscheck)


def _run(aimed: Aim, out: Path, as_json: bool) -> LoadResult:
    from loadtest import run

    scenario = aimed.scenario

    with _interrupts() as interrupts, _bar(as_json) as bar:
        task = bar.add_task("starting", total=scenario.warmup_s + scenario.duration_s)

        def show(now: Progress) -> bool:
            text = f"{now.phase}: {now.ok} answered, {now.in_flight} open"
            bar.update(task, completed=max(now.t_s, 0.0), description=text)
            return bool(interrupts)

        return run(scenario, aimed.url, out, show, aimed.playback, aimed.about_server)


def _run_both(aimed: Aim, against: Against, out: Path, as_json: bool) -> SideBySide:
    from loadtest.baseline import run_side_by_side

    # The baseline's processes are stopped on the way out, so whoever ends us has to let us go that way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    scenario = aimed.scenario
    with _bar(as_json) as bar:
        task = bar.add_task("starting", total=scenario.warmup_s + scenario.duration_s)

        def say(text: str) -> None:
            bar.update(task, completed=0.0, description=text)

        def show(now: Progress) -> None:
            bar.update(task, completed=max(now.t_s, 0.0))

        return run_side_by_side(scenario, aimed.url, against, out, show, say, aimed.about_server)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The signals that came so far: after one the run ends and reports what it has; after two it is given up."""
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _find(aimed: Aim, out: Path, as_json: bool) -> KneeResult:
    from loadtest.search import find_max

    with _bar(as_json) as bar:
        task = bar.add_task("warming up until latency settles", total=None)

        def show(step: Try) -> None:
            bar.update(task, description=f"{step.purpose}: {step.rate:.1f}/s")

        return find_max(aimed.scenario, aimed.url, out, show)


def _bar(as_json: bool) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=as_json or not sys.stderr.isatty(),
    )


def _text(result: LoadResult) -> str:
    from loadtest.report import HEADLINES, ms, replicas

    rows = [["phase", "offered/s", "achieved/s", "goodput/s", "p50", "p99", "failed", "dropped", "batch", "replicas"]]
    phases = [(phase.name, phase) for phase in result.phases]
    if len(phases) > 1:
        phases.append(("all", result.total))
    for name, p in phases:
        rates = [f"{value:.1f}" for value in (p.offered_rps, p.achieved_rps, p.goodput_rps)]
        batch = "–" if p.server.batch_rows is None else f"{p.server.batch_rows:.1f}"
        failures = [str(p.counts.failed), str(p.counts.dropped)]
        rows.append([name, *rates, ms(p.p50_s), ms(p.p99_s), *failures, batch, replicas(p)])
    lines = [_aligned(rows), ""]
    if result.total.counts.errors:
        lines.append("errors: " + ", ".join(f"{n} {kind}" for kind, n in result.total.counts.errors.items()))
    lines.append(f"{HEADLINES[result.verdict.status][1]} ({result.load.objective})")
    lines += [f"  {line}" for line in (*result.verdict.reasons, *result.verdict.notes)]
    lines += [f"event at {e.at_s:.1f} s: {e.name}: {e.error or e.detail}" for e in result.events]
    if "report" in result.files:
        lines.append(f"report: {result.files['report']}")
    return "\n".join(lines)


def _both_text(both: SideBySide) -> str:
    from loadtest.compare import rows
    from loadtest.report import HEADLINES

    name = both.baseline.about_server.get("name", "baseline")
    table = [["", "Prism", name, f"{name}/Prism", "95 % interval", ""], *rows(both.comparison)]
    verdicts = [
        f"{who}: {HEADLINES[result.verdict.status][1]} ({'; '.join(result.verdict.reasons) or result.load.objective})"
        for who, result in (("Prism", both.prism), (name, both.baseline))
    ]
    notes = [f"note: {warning}" for warning in both.comparison.warnings]
    return "\n".join([_aligned(table), "", *verdicts, *notes, f"report: {both.files['report']}"])


def _knee_text(knee: KneeResult, out: Path) -> str:
    from loadtest.report import ms

    if knee.rate is None:
        return f"no rate kept the objective ({knee.objective}): limited by {knee.limited_by}\nreport: {out}/knee.html"
    return (
        f"{knee.rate:.1f} requests a second keep {knee.objective}: goodput {knee.goodput_rps:.1f}/s, "
        f"p99 {ms(knee.p99_s)} (worst of the confirmations); the next rate up failed on {knee.limited_by}\n"
        f"report: {out}/knee.html"
    )


def _list(as_json: bool) -> None:
    from loadtest.scenario import read_scenario, shipped

    found = {name: read_scenario(name) for name in shipped()}
    values = [
        {"name": n, "about": s.about, "duration_s": s.duration_s, "objective": str(s.objective)}
        for n, s in found.items()
    ]
    rows = [[name, f"{s.duration_s:g} s", str(s.objective), s.about] for name, s in found.items()]
    emit(values, as_json, _aligned(rows))


def _aligned(rows: list[list[Any]]) -> str:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(str(cell).ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _check_writable(out: Path) -> None:
    """Raises: OperatorError if the report could not be written: better before the load than after it."""
    place = next(each for each in (out.absolute(), *out.absolute().parents) if each.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OperatorError(f"out: cannot write {out}: {place} is not a folder that may be written to")


def _need_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("locust", "matplotlib") if find_spec(name) is None]
    if missing:
        raise OperatorError(f"loadtest: {missing[0]} is not installed; pip install 'prism-serving[loadtest]'")
