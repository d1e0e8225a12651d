"""`prism compare`: how far two models' answers are apart."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.cli.output import emit, json_option
from cluster.errors import ConversionFailed, OperatorError

EXAMPLES = """
\b
Examples:
  prism compare fp32-artifact int8-artifact --report compare.html
  prism compare old.onnx new.onnx --sample photos.npz --tolerance sqnr=40
  prism compare saved_model/ model.tflite --sample photos.npz
  prism compare old.onnx new.onnx --output scores=logits
  prism compare weights.pth artifact --factory mymodel:build
  prism compare fp32-artifact int8-artifact --evaluate labelled.npz --max-drop 0.01
"""


@click.command(epilog=EXAMPLES)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--sample", type=click.Path(path_type=Path), help=".npz of inputs; without it an artifact's own sample.")
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="NAME[=NAME]",
    help="Compare only this output of FIRST, with the one that SECOND calls so; without it, all that FIRST has.",
)
@click.option("--dynamic", multiple=True, metavar="NAME:AXIS=MIN..MAX", help="A free axis, compared at both ends.")
@click.option("--evaluate", type=click.Path(path_type=Path), help=".npz of inputs with one array of labels more.")
@click.option("--metric", default="accuracy", show_default=True, help="As in `prism convert`.")
@click.option("--max-drop", type=float, help="Fail if the metric is worse by more.")
@click.option("--tolerance", default="", metavar="KEY=NUMBER,...", help="As in `prism convert`.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "gpu"]), help="Where both run.")
@click.option("--factory", metavar="MODULE:CALLABLE", help="As in `prism convert`, for weights of PyTorch.")
@click.option("--input", "inputs", multiple=True, metavar="NAME:DTYPE:SHAPE", help="As in `prism convert`.")
@click.option("--trust-pickle", is_flag=True, help="As in `prism convert`: load files that can run code.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Give up when loading and checking a model that is no artifact takes longer.",
)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with plots here.")
@json_option
def compare(
    first: Path,
    second: Path,
    sample: Path | None,
    outputs: tuple[str, ...],
    dynamic: tuple[str, ...],
    evaluate: Path | None,
    metric: str,
    max_drop: float | None,
    tolerance: str,
    device: str,
    factory: str | None,
    inputs: tuple[str, ...],
    trust_pickle: bool,
    timeout_s: float | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Compare what SECOND answers with what FIRST answers; exit code 1 if they are not near enough.

    Both are artifact directories, or models as `prism convert` takes them: .onnx, .pt2, .tflite or .keras files,
    SavedModel folders and so on, each of which is run by its own framework where that is installed. SECOND must have
    every output that FIRST has, by name, or else by place; --output names pairs, and leaves out the others.
    """
    from converters.build import silent
    from converters.candidate import Options
    from converters.proof.comparison import compare_artifacts
    from converters.proof.parity import parse_tolerance

    options = Options(
        sample=sample,
        dynamic=dynamic,
        evaluate=evaluate,
        metric=metric,
        max_drop=max_drop,
        tolerance=parse_tolerance(tolerance),
        device=device,
        factory=factory,
        inputs=inputs,
        trust_pickle=trust_pickle,
        apart=True,
        timeout_s=timeout_s,
    )
    found = compare_artifacts(first, second, options, silent, outputs)
    if report is not None:
        try:
            report.write_text(found.page, encoding="utf-8")
        except OSError as error:
            raise OperatorError(f"report: cannot write {report} ({error.strerror})") from None
    if as_json:
        emit(dict(found.parity), as_json=True)
    else:
        from cluster.cli.convert import print_outputs

        print_outputs(f"{second} compared with {first}", [(second.name, found.parity)])
    if found.failures:
        raise ConversionFailed(f"{second} is not near enough to {first}: {'; '.join(found.failures)}")
