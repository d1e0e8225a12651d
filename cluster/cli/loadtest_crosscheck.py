"""`prism loadtest crosscheck`: our load generator against an independent one."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.cli.output import emit, home_option, json_option

if TYPE_CHECKING:
    from loadtest.crosscheck import Seen


@click.command(epilog="\b\nExample:\n  prism loadtest crosscheck --model classifier --rate 100 --seconds 20")
@click.option("--host", help="Server to load, e.g. http://127.0.0.1:8000.  [default: the one running in --home]")
@click.option("--model", required=True, help="Model to ask: name, name:version or name@label.")
@click.option("--sample", type=click.Path(exists=True, resolve_path=True), help="Request bodies from this .npz.")
@click.option("--rate", type=float, required=True, help="Requests per second.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Length of each round.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Rounds of each generator, in turns.")
@click.option("--tolerance", type=float, default=0.15, show_default=True, help="How far apart the p99 may be.")
@home_option
@json_option
def crosscheck(
    host: str | None,
    model: str,
    sample: str | None,
    rate: float,
    seconds: float,
    rounds: int,
    tolerance: float,
    home: Path,
    as_json: bool,
) -> None:
    """The same load from MLPerf LoadGen and from Prism's own generator: do they see the same latency?

    Exit code: 0 they do, 1 they do not (or an error), 2 requests failed or our generator was late.
    """
    from cluster.cli.loadtest_home import aim
    from loadtest.crosscheck import crosscheck as check
    from loadtest.crosscheck import table, versions
    from loadtest.scenario import read_scenario

    def show(seen: Seen) -> None:
        latency = ", ".join(f"{name} {value * 1e3:.2f} ms" for name, value in seen.latency_s.items())
        print(f"{seen.by:8}{latency}", file=sys.stderr)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the generators are stopped on the way out
    scenario = read_scenario("smoke", rate=rate, model=model, sample=sample)
    with aim(scenario, host, home) as aimed:
        found = check(aimed.scenario, aimed.url, seconds, rounds, show, tolerance)
    lines = ["  ".join(cell.ljust(11) for cell in row).rstrip() for row in table(found)]
    lines += ["", f"p99 {'agrees' if found.agrees else 'DIFFERS'}: at most {tolerance:.0%} apart is asked for"]
    lines += [
        f"{rounds} rounds each of {seconds:g} s at {rate:g}/s; {versions()}",
        *(f"  {flaw}" for flaw in found.flaws),
    ]
    emit({**asdict(found), "ratios": found.ratios, "agrees": found.agrees}, as_json, "\n".join(lines))
    sys.exit(2 if found.flaws else 0 if found.agrees else 1)
