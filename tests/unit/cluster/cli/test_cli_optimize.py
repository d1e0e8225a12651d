"""What `prism optimize` prints, without optimising anything."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import converters.build
import converters.optimize
from cluster.cli.convert import telling
from cluster.cli.main import cli
from cluster.cli.optimize import _print
from cluster.errors import OperatorError
from converters.candidate import Options
from converters.objective import Configuration, Result


@pytest.mark.parametrize("columns", ["60", "200"])
def test_what_was_not_tried_and_what_failed_is_told_to_the_letter(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    best = Result(Configuration("onnx", 1, 8), 100.0, 0.01, 0.001)
    missing = "it needs tensorflow, not installed (pip install 'prism-serving[tensorflow]')"
    found = SimpleNamespace(
        best=best,
        results=(best,),
        reasons={best.configuration: "kept"},
        quality={"onnx": {"sqnr_db": None}},
        failed={"fp16": "node [/a/b] fails"},
        left_out={"tflite": missing, "tensorflow": missing},
        serving={"num_cpus": 1},
        artifact=SimpleNamespace(digest="0" * 64),
    )
    _print(found, "p99<20ms", Path("best[/x]"))
    printed = capsys.readouterr().out
    assert f"not tried: tflite, tensorflow: {missing}\n" in printed and "failed: fp16: node [/a/b] fails\n" in printed
    assert "prism publish NAME best[/x]\n" in printed


@pytest.mark.parametrize(
    ("command", "said", "compiled"),
    [
        ("optimize", (), "auto"),
        ("optimize", ("--compiled", "off"), "off"),
        ("convert", (), "off"),
        ("convert", ("--compiled", "auto"), "auto"),
    ],
)
def test_the_search_measures_compiled_code_and_a_conversion_only_if_asked(monkeypatch, command, said, compiled):
    asked = []

    def stop(*arguments):
        asked.extend(argument for argument in arguments if isinstance(argument, Options))
        raise OperatorError("enough")

    monkeypatch.setattr(converters.build, "convert", stop)
    monkeypatch.setattr(converters.optimize, "optimize", stop)
    goal = ("--objective", "p99<20ms") if command == "optimize" else ()
    CliRunner().invoke(cli, [command, "model.pt2", "-o", "out", *goal, *said])
    assert [options.compiled for options in asked] == [compiled]


def test_names_that_look_like_markup_are_told_as_they_are(capsys):
    with telling("converting m[/a].onnx") as say:
        say("m[bold].onnx is run as onnx [/b]")
    assert "m[bold].onnx is run as onnx [/b]" in capsys.readouterr().err
