"""`prism convert`: a trained model in, verified artifacts out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.output import emit, json_option
from cluster.errors import InvalidRequest

if TYPE_CHECKING:
    from cluster.artifact import Artifact
    from converters.candidate import Options

MAX_LABELS_BYTES = 64 << 20

EXAMPLES = """
\b
Examples:
  prism convert model.onnx -o artifact
  prism convert weights.safetensors --factory mymodel:build --input image:FP32:N,3,224,224 -o artifact
  prism convert weights.pth --factory mymodel:build --sample photos.npz --calibrate more.npz --to onnx,int8 -o out
  prism convert text.onnx --dynamic ids:1=1..128 --dynamic mask:1=1..128 --to int8-dynamic -o artifact
  prism convert model.onnx --evaluate labelled.npz --metric accuracy --max-drop 0.01 --to fp16 -o artifact
"""


SOURCE_OPTIONS = (
    click.option("--factory", metavar="MODULE:CALLABLE", help="Builds the torch module that the weights are for."),
    click.option("--sample", type=click.Path(path_type=Path), help=".npz with one array per input, rows first."),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="NAME:DTYPE:SHAPE",
        help="An input, as image:FP32:N,3,224,224 (N counts rows; other free axes: ids:INT64:N,L=128).",
    ),
    click.option("--calibrate", type=click.Path(path_type=Path), help=".npz that INT8 ranges are measured on."),
    click.option(
        "--dynamic",
        multiple=True,
        metavar="NAME:AXIS=MIN..MAX",
        help="A free axis besides rows, proved at both ends: ids:1=1..128.",
    ),
    click.option(
        "--evaluate", type=click.Path(path_type=Path), help=".npz like --sample with one array of labels more."
    ),
    click.option(
        "--metric",
        default="accuracy",
        show_default=True,
        help="accuracy, top5, auc, mse, rmse or mae on --evaluate; accuracy:NAME takes the output called so.",
    ),
    click.option("--max-drop", type=float, help="Fail if the metric gets worse by more (errors: relative)."),
    click.option("--labels", type=click.Path(path_type=Path), help="Class names: a JSON list, or one a line."),
    click.option(
        "--max-rows",
        default=64,
        show_default=True,
        type=click.IntRange(1),
        help="Most rows of one call; 1: no batching.",
    ),
    click.option(
        "--tolerance",
        default="",
        metavar="KEY=NUMBER,...",
        help="Override what counts as equal: rel, abs (of the peak), share (of elements out), sqnr (dB), top1.",
    ),
    click.option(
        "--device",
        default="cpu",
        show_default=True,
        type=click.Choice(["cpu", "gpu"]),
        help="Where targets are proved and measured.",
    ),
    click.option(
        "--compiled",
        type=click.Choice(["off", "auto", "on"]),
        help="Compiled code for what PyTorch serves; auto: where it is measured to pay, as optimize does unless told "
        "otherwise. To compile takes tens of seconds.",
    ),
    click.option(
        "--timing-cache", type=click.Path(path_type=Path, dir_okay=False), help="File of TensorRT's timings to reuse."
    ),
    click.option(
        "--engine",
        default="here",
        show_default=True,
        type=click.Choice(["here", "on-load"]),
        help="Where TensorRT engines are built: on this machine, or by the first replica on the GPU that it has.",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(0, min_open=True),
        metavar="SECONDS",
        help="Give up when loading, converting and proving take longer.",
    ),
    click.option(
        "--trust-pickle", is_flag=True, help="Load files that can run code. Only for files you made yourself."
    ),
)


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what a source needs and what counts as the same answer."""
    for option in reversed(SOURCE_OPTIONS):
        command = option(command)
    return command


def options_of(values: Mapping[str, Any], compiled: str = "off") -> Options:
    """What `source_options` collected; `compiled` is what the command does where nothing is said of it.

    Raises: InvalidRequest.
    """
    from converters.candidate import Options
    from converters.proof.parity import parse_tolerance

    labels: Path | None = values["labels"]
    return Options(
        **{
            **values,
            "apart": True,
            "compiled": values["compiled"] or compiled,
            "labels": read_labels(labels) if labels is not None else (),
            "tolerance": parse_tolerance(values["tolerance"]),
        }
    )


@click.command(epilog=EXAMPLES)
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("--to", default="onnx", show_default=True, help="Targets, separated by commas; --list shows them.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="The artifact's folder; with several targets, the folder that gets one of each.",
)
@source_options
@click.option("--list", "list_routes", is_flag=True, help="Show the conversions and what is installed for them.")
@json_option
def convert(
    source: Path | None,
    to: str,
    out: Path | None,
    list_routes: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Convert SOURCE and prove that the result answers as the source does.

    SOURCE is weights (.safetensors, .pth, .pt) with a --factory, a .pt2 of torch.export, an .onnx file, or another
    kind that --list shows. Several targets fan out from the ONNX form: an engine cannot be converted further, so
    `--to tensorrt-int8,tensorflow,tflite --calibrate rows.npz` makes all three in one command.
    """
    if list_routes:
        _print_routes(as_json)
        return
    if source is None:
        raise click.UsageError("Missing argument 'SOURCE'.")
    if out is None:
        raise click.UsageError("Missing option '-o' / '--out'.")

    from converters.build import convert as build

    options = options_of(values)
    targets = [name.strip() for name in to.split(",") if name.strip()]
    if as_json:
        artifacts = build(source, out, targets, options)
        emit([_summary(artifact) for artifact in artifacts], as_json=True)
        return
    with telling(f"converting {source.name}") as say:
        artifacts = build(source, out, targets, options, say)
    print_parity(artifacts)


@contextmanager
def telling(doing: str) -> Iterator[Callable[[str], None]]:
    """Tells people what is done, and what next; names and messages may hold what rich takes for markup."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, markup=False)
    with console.status(Text(doing)) as status:

        def say(text: str) -> None:
            console.print(text, style="dim")
            status.update(Text(text))

        yield say


def read_labels(file: Path) -> tuple[str, ...]:
    """Class names by index. Raises: InvalidRequest if the file is missing or neither a JSON list nor text."""
    try:
        if file.stat().st_size > MAX_LABELS_BYTES:
            raise InvalidRequest(f"labels: {file.name} is larger than {MAX_LABELS_BYTES} bytes")
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"labels: {file} cannot be read ({error})") from None
    if isinstance(found, dict):  # {"0": "tench", ...}
        found = [found.get(str(i)) for i in range(len(found))]
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise InvalidRequest(f"labels: expected a list of names by index in {file.name}")
    return tuple(found)


def print_parity(artifacts: tuple[Artifact, ...]) -> None:
    """A table of what was compared, and one line of costs per artifact."""
    from rich.console import Console

    kinds = sorted({artifact.parity()["kind"] for artifact in artifacts} - {"self"})
    itself = any(artifact.parity()["kind"] == "self" for artifact in artifacts)
    sides = [
        *([f"the {', '.join(kinds)} source"] if kinds else []),
        *(["itself, alone and in company"] if itself else []),
    ]
    against = ", or ".join(sides)
    print_outputs(f"compared with {against}", [(target_of(artifact), artifact.parity()) for artifact in artifacts])
    console = Console(markup=False)
    for artifact in artifacts:
        console.print(_costs(artifact), highlight=False, soft_wrap=True)


def print_outputs(title: str, parities: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """A table with one line per output of each named comparison, then metrics and notes."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("artifact", "output", "values", "max abs", "max rel", "out", "SQNR", "top-1"):
        if name == "output":  # a name may be long, and is told whole
            table.add_column(name, overflow="fold", min_width=8)
        else:
            table.add_column(name, justify="left" if name == "artifact" else "right", no_wrap=True)
    for name, parity in parities:
        for output in parity["outputs"]:
            table.add_row(
                name,
                output["name"],
                str(output["elements"]),
                _number(output["worst_abs"], ".2e"),
                _number(output["worst_rel"], ".2e"),
                _number(output["share_out"], ".2%"),
                _number(output["sqnr_db"], ".1f", " dB", none="exact" if output["worst_abs"] == 0 else "-"),
                _number(output["top1"], ".1%"),
            )
    console.print(table)
    for note in dict.fromkeys(note for _, parity in parities for note in parity.get("notes", [])):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    for name, parity in parities:
        found = parity.get("evaluation")
        if found:
            console.print(
                f"{name}: {found['metric']} of {found['output']} on {found['rows']} rows: "
                f"source {_number(found['source'], '.4f')}, converted {found['converted']:.4f}",
                highlight=False,
            )


def target_of(artifact: Artifact) -> str:
    """What the artifact was made for: the name of its target, or its precision."""
    return str(artifact.manifest.extra.get("target", artifact.manifest.precision))


def _costs(artifact: Artifact) -> str:
    from converters.sealing import model_bytes

    device = next(iter(artifact.profile()["devices"].values()), None)
    size = model_bytes(artifact.path) / 1e6
    if device is None:
        return f"{artifact.path}: {target_of(artifact)}, {size:.1f} MB, not measured, digest {artifact.digest[:12]}"
    seconds = device["seconds_by_rows"]
    first, best = float(seconds["1"]), device["best_rows"]
    per_row = float(seconds.get(str(best), first)) / best
    on_gpu = f", {device['gpu_bytes'] / 1e6:.0f} MB on the GPU" if "gpu_bytes" in device else ""
    return (
        f"{artifact.path}: {target_of(artifact)}, {size:.1f} MB, "
        f"1 row {first * 1e3:.3g} ms, best batch {best} rows ({per_row * 1e3:.3g} ms a row, one thread), "
        f"cold load {device['load_s']:.2g} s, {device['rss_bytes'] / 1e6:.0f} MB{on_gpu}, "
        f"digest {artifact.digest[:12]}"
    )


def _number(value: Any, form: str, unit: str = "", none: str = "-") -> str:
    return none if value is None else f"{value:{form}}{unit}"


def _summary(artifact: Artifact) -> dict[str, Any]:
    return {
        "path": str(artifact.path),
        "digest": artifact.digest,
        "format": artifact.manifest.format,
        "precision": artifact.manifest.precision,
        "parity": artifact.parity(),
        "profile": artifact.profile(),
    }


def _print_routes(as_json: bool) -> None:
    from converters.installed import refuse_conflicts
    from converters.table import EXTRA_OF, ROUTES

    refuse_conflicts()
    if as_json:
        emit(
            [
                {
                    "from": r.source.value,
                    "to": r.target.value,
                    "what": r.what,
                    "needs": list(r.needs),
                    "missing": list(r.missing),
                    "missing_builders": list(r.missing_builders),
                }
                for r in ROUTES
            ],
            as_json=True,
        )
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("from", no_wrap=True)
    table.add_column("to", no_wrap=True)
    table.add_column("what")
    table.add_column("state")
    for r in ROUTES:
        lacking = r.missing or r.missing_builders
        extras = sorted({EXTRA_OF[name] for name in lacking if name in EXTRA_OF})
        bring = f" (extra: {', '.join(extras)})" if extras else ""
        state = f"missing: {', '.join(lacking)}{bring}" if lacking else "ready"
        if lacking and not r.missing:
            state = f"ready with --engine on-load; {state}"
        table.add_row(r.source.value, r.target.value, r.what, state)
    Console().print(table)
