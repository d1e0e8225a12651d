"""`prism optimize`: the form and settings in which a model serves an objective with the least hardware."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.convert import options_of, source_options, telling
from cluster.cli.output import emit, json_option

if TYPE_CHECKING:
    from converters.optimize import Optimized

EXAMPLES = """
\b
Examples:
  prism optimize model.onnx --objective "p99<20ms" -o best
  prism optimize weights.pth --factory net:build --sample a.npz --calibrate b.npz --objective "p99<5ms" -o best
  prism optimize model.onnx --calibrate b.npz --evaluate labelled.npz --max-drop 0.01 --objective "p95<10ms" -o best
"""


@click.command(epilog=EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--objective", required=True, metavar="pNN<TIME", help="What most answers must keep, as p99<20ms.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The best artifact's folder.")
@click.option("--to", default="", help="Targets to try, separated by commas; without any, those that suit the device.")
@click.option(
    "--threads", default="", help="Threads a call may have, as 1,2; without any, up to the cores (at most 4)."
)
@source_options
@json_option
def optimize(source: Path, objective: str, out: Path, to: str, threads: str, as_json: bool, **values: Any) -> None:
    """Convert SOURCE to every form that makes sense, and keep what serves the objective with the least hardware.

    Each form is proved and measured as by `prism convert`; each batch size and number of threads is then simulated with
    requests that arrive at random. The best is the one with most requests per second and thread within the objective.
    Which forms make sense follows from the model, the device, the data given and what is installed; why others were
    not tried is told below the table. The artifact that is kept says how it is to be served: `prism deploy` starts from
    that.
    """
    from converters.build import silent
    from converters.objective import parse_objective
    from converters.optimize import optimize as run

    goal = parse_objective(objective)
    counts = _counts(threads)
    targets = [name.strip() for name in to.split(",") if name.strip()]
    options = options_of(values, compiled="auto")
    if as_json:
        found = run(source, out, goal, options, silent, targets, counts)
        emit({"path": str(out), "digest": found.artifact.digest, **_table(found)}, as_json=True)
        return
    with telling(f"optimising {source.name}") as say:
        found = run(source, out, goal, options, say, targets, counts)
    _print(found, objective, out)


def _counts(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and 0 < int(part) <= 256 for part in parts):
        raise click.BadParameter(f"expected whole numbers from 1, as 1,2; got {text!r}", param_hint="--threads")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _table(found: Optimized) -> dict[str, Any]:
    return {
        "best": found.best.to_json(),
        "serving": dict(found.serving),
        "tried": [{**result.to_json(), "verdict": found.reasons[result.configuration]} for result in found.results],
        "failed": dict(found.failed),
        "left_out": dict(found.left_out),
        "quality": dict(found.quality),
    }


def _print(found: Optimized, objective: str, out: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from converters.optimize import best_by_threads

    console = Console(markup=False)
    table = Table(title=f"within {objective}, one replica", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("form", "threads", "batch", "req/s a thread", "1 row", "SQNR", "verdict"):
        left = name in ("form", "verdict")
        table.add_column(name, justify="left" if left else "right", overflow="fold", min_width=6 if left else None)
    for result in best_by_threads(found.results):
        c, quality = result.configuration, found.quality[result.configuration.target]
        noise = quality["sqnr_db"]
        table.add_row(
            c.target,
            str(c.threads),
            str(c.max_rows) if result.rate else "-",
            f"{result.rate_per_thread:,.0f}" if result.rate else "-",
            f"{result.one_row_s * 1e3:.3g} ms",
            "-" if noise is None else f"{noise:.0f} dB",
            found.reasons[c],
        )
    console.print(table)
    for outcome, reasons in (("failed", found.failed), ("not tried", found.left_out)):
        for reason, names in _by_reason(reasons).items():
            console.print(f"{outcome}: {', '.join(names)}: {reason}", highlight=False, soft_wrap=True)
    c = found.best.configuration
    settings = ", ".join(f"{name} {value:g}" for name, value in found.serving.items() if not isinstance(value, str))
    console.print(
        f"kept {c.target} at {out} (digest {found.artifact.digest[:12]}). To serve it with {settings}, "
        "which it asks for itself:\n"
        f"  prism publish NAME {out}\n"
        "  prism deploy NAME:VERSION",
        highlight=False,
        soft_wrap=True,
    )


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Forms that share a reason share a line."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(reason, []).append(name)
    return found
