"""`python -m loadtest.bench`: entry point of the side-by-side benchmark."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console

from cluster.errors import InvalidRequest, ServingError
from loadtest.bench.contestants import CONTESTANTS, read_contestants
from loadtest.bench.formats import FORMATS
from loadtest.bench.work import WORKS

EPILOG = """\b
Examples:
  python -m loadtest.bench                             everything; about half an hour, on a quiet machine
  python -m loadtest.bench --quick                     one short round, to see that it works
  python -m loadtest.bench --work T --contestants prism,mosec --rounds 5
  python -m loadtest.bench --work M --connections 32 --rates 300
  python -m loadtest.bench micro
"""
T = TypeVar("T")
DEFAULT = ("prism", "ray-serve", "ray-serve-haproxy", "starlette", "mosec")


@click.group(invoke_without_command=True, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--work", "works", default=",".join(WORKS), show_default=True, help="Models, separated by commas.")
@click.option("--contestants", "names", default=",".join(DEFAULT), show_default=True, help="Servers, in this order.")
@click.option("--rounds", type=click.IntRange(1), help="Turns of every server.  [default: 3]")
@click.option("-d", "--seconds", type=click.FloatRange(0.1, 600), help="Per load.  [default: 5]")
@click.option("-c", "--connections", default="", help="Closed loops of so many, instead of each model's own.")
@click.option("--formats", default="", help=f"Only these of {', '.join(FORMATS)}.")
@click.option("--open", "open_share", default=0.6, show_default=True, help="Open loop on M at this share of the best.")
@click.option("--rates", default="", help="More open loops, on every model, in requests per second.")
@click.option("--quick", is_flag=True, help="One round of short loads.")
@click.option(
    "--peer-file", "peers", multiple=True, type=click.Path(exists=True, path_type=Path), help="More servers, as JSON."
)
@click.option("--no-floor", is_flag=True, help="Leave out the models without a server.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("loadtest/results"), show_default=True
)
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/bench"),
    show_default=True,
    help="Models, artifacts, servers' logs; models are kept for the next run.",
)
@click.pass_context
def bench(
    context: click.Context,
    works: str,
    names: str,
    rounds: int | None,
    seconds: float | None,
    connections: str,
    formats: str,
    open_share: float,
    rates: str,
    quick: bool,
    peers: tuple[Path, ...],
    no_floor: bool,
    out: Path,
    work_dir: Path,
) -> None:
    """Measure Prism and other servers side by side on this machine.

    Each server is started on a free port of the loopback address, measured and stopped again, in turns. Close
    everything else: the servers, the load generator and whatever else runs share the cores.
    """
    if context.invoked_subcommand is not None:
        return
    from loadtest.bench.report import show, write_files
    from loadtest.bench.rounds import Bench, run
    from loadtest.bench.visits import Schedule

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # servers are stopped on the way out
    known = {**CONTESTANTS, **{name: found for file in peers for name, found in read_contestants(file).items()}}
    for name in _words(formats):
        _of(dict.fromkeys(FORMATS), name, "formats")
    try:
        schedule = Schedule(
            seconds=seconds or (1.0 if quick else 5.0),
            warm_s=0.5 if quick else 1.5,
            idle_s=1.0 if quick else 2.0,
            quiet_tries=1 if quick else 8,
            connections=tuple(int(word) for word in _words(connections)),
            formats=_words(formats),
            open_share=open_share,
            rates=tuple(float(word) for word in _words(rates)),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    plan = Bench(
        contestants=tuple(_of(known, name, "contestants") for name in _words(names)),
        works=tuple(_of(WORKS, name, "work") for name in _words(works)),
        rounds=rounds or (1 if quick else 3),
        schedule=schedule,
        floor_s=0.0 if no_floor else 0.2 if quick else 1.0,
        work_dir=work_dir.resolve(),
        command="python -m loadtest.bench " + " ".join(sys.argv[1:]),
    )
    console = _console()
    result = run(plan, lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True))
    show(result, console)
    files = write_files(result, out, f"bench-{datetime.now():%Y-%m-%d-%H%M}")
    console.print("written: " + ", ".join(map(str, files)), soft_wrap=True)
    if not result.measurements or any(failure.round >= 0 for failure in result.failures):
        sys.exit(1)


@bench.command()
@click.option("-d", "--seconds", default=0.3, show_default=True, help="Per function.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def micro(seconds: float, as_json: bool) -> None:
    """Time the codec, the wire's frames and the batching policy, in microseconds per call."""
    import msgspec

    from loadtest.bench.micro import measure, show

    timings = measure(seconds)
    if as_json:
        click.echo(msgspec.json.encode(timings).decode())
    else:
        show(timings, _console())


@bench.command()
@click.option("-d", "--seconds", default=3.0, show_default=True)
def ceiling(seconds: float) -> None:
    """What the load generator reaches against a server that only answers."""
    import tempfile

    from loadtest.bench.rounds import CEILING_CONNECTIONS
    from loadtest.bench.rounds import ceiling as measure

    with tempfile.TemporaryDirectory(prefix="prism-bench-") as folder:
        found = measure(seconds, Path(folder))
    cpu_us = 1e6 * found.cpu_s / max(1, found.answers)
    click.echo(f"{found.rps:.0f} requests/s at {CEILING_CONNECTIONS} connections, {cpu_us:.1f} µs of CPU a request")


@bench.command()
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def report(result: Path) -> None:
    """Make the page, the Markdown and the table of a RESULT.json again."""
    from loadtest.bench.report import show, write_files
    from loadtest.bench.result import BenchResult

    found = BenchResult.read(result)
    show(found, _console())
    write_files(found, result.parent, result.stem)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _of(table: Mapping[str, T], name: str, option: str) -> T:
    if name not in table:
        raise InvalidRequest(f"{option}: expected some of {', '.join(table)}, got {name!r}")
    return table[name]


def main() -> None:
    try:
        bench.main(prog_name="python -m loadtest.bench")
    except ServingError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
