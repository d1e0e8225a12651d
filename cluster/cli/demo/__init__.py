"""`prism demo`: the whole path on a real network, told step by step."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.cli.output import emit, json_option


@click.command()
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=".prism-demo",
    show_default=True,
    help="Folder for everything the demo makes.",
)
@click.option("--http-port", type=int, default=0, help="Port of the gateway.  [default: a free one from 8000 on]")
@click.option("--keep", is_flag=True, help="Leave everything running at the end.")
@click.option("--rate", type=float, default=0.0, help="Requests per second the load starts with.  [default: measured]")
@json_option
def demo(home: Path, http_port: int, keep: bool, rate: float, as_json: bool) -> None:
    """Convert, verify, serve, split, roll back and load a real image classifier.

    Takes a few minutes on two cores and needs no network. Needs the extra `demo`.

    \b
    Example:
      prism demo --keep
    """
    from cluster.cli.demo.story import tell

    outcome = tell(home.absolute(), http_port, keep, rate, quiet=as_json)
    emit(outcome, as_json, "")
    if outcome["failed_requests"]:
        raise SystemExit(1)
