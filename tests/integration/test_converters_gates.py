"""What closes a gate: a metric that drops by more than it may, and outputs that nothing was compared with."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

from cluster.cli.compare import compare
from cluster.errors import ConversionFailed, InvalidRequest
from cluster.tensors import ANY, Signature, TensorSpec
from converters.build import convert, silent
from converters.candidate import Options
from converters.objective import parse_objective
from converters.optimize import optimize
from converters.proof.comparison import compare_artifacts
from onnx_models import model_of, write_artifact

pytestmark = pytest.mark.usefixtures("forked_proofs")

QUICK = Options(profile_s=0.05, max_rows=8)


@pytest.fixture(scope="module")
def lossy(forked_proofs, tmp_path_factory):
    """A source, options, and its proved forms `onnx` and `int8`, which is wrong about 2 of 40 labelled rows.

    The class is the sign of x[1]. INT8 has one scale for both columns, of about 1 since x[0] goes to 127: 0.3 becomes
    0, and is taken for the first class as -0.3 is.
    """
    folder = tmp_path_factory.mktemp("lossy")
    sign = np.tile(np.array([-1, 1], "f4"), 20)
    x = np.stack([127 * np.repeat(sign[:20], 2), np.where(np.arange(40) < 4, 0.3, 20) * sign], axis=1).astype("f4")
    np.savez(folder / "rows.npz", x=x)
    np.savez(folder / "labelled.npz", x=x, label=(sign > 0).astype("i8"))
    specs = [TensorSpec(name, "FP32", (ANY, 2)) for name in "xy"]
    weights = {"w": np.array([[0, 0], [-1, 1]], "f4")}
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], specs[:1], specs[1:], weights)
    source = folder / "m.onnx"
    onnx.save(model, source)
    options = replace(QUICK, calibrate=folder / "rows.npz", evaluate=folder / "labelled.npz", max_drop=0.06)
    return source, options, convert(source, folder / "out", ("onnx", "int8"), options)


def test_the_gate_is_open_for_a_smaller_drop_than_it_allows_and_closed_for_a_larger_one(lossy, tmp_path):
    source, options, (fp32, int8) = lossy
    found = int8.parity()["evaluation"]
    assert (found["source"], found["converted"]) == (1.0, 0.95) and found["drop"] == pytest.approx(0.05)
    with pytest.raises(
        ConversionFailed, match=r"accuracy of y went from 1\.0000 to 0\.9500 on 40 rows: .* at most 0\.04"
    ):
        convert(source, tmp_path / "out", ("int8",), replace(options, max_drop=0.04))
    assert not (tmp_path / "out").exists()
    assert any("--max-drop bounds nothing here" in note for note in fp32.parity()["notes"])
    assert not any("--max-drop" in note for note in int8.parity()["notes"])
    unlabelled = replace(options, evaluate=None)
    for gated in (
        lambda: convert(source, tmp_path / "out", ("onnx",), unlabelled),
        lambda: compare_artifacts(fp32.path, int8.path, unlabelled, silent),
    ):
        with pytest.raises(InvalidRequest, match="max_drop: it bounds a metric"):
            gated()


def test_a_form_whose_metric_drops_by_more_than_it_may_is_never_the_best(lossy, tmp_path):
    source, options, _ = lossy
    goal, strict = parse_objective("p99<50ms"), replace(options, max_drop=0.04)
    found = optimize(source, tmp_path / "best", goal, strict, silent, ("onnx", "int8"), (1,))
    assert found.best.configuration.target == "onnx" and "a drop of 0.0500" in found.failed["int8"]
    found = optimize(source, tmp_path / "loose", goal, options, silent, ("int8",), (1,))
    assert found.best.configuration.target == "int8" and not found.failed
    assert found.quality["int8"]["drop"] == pytest.approx(0.05)


def test_the_compare_command_says_no_by_its_exit_code(lossy, tmp_path):
    _, options, (fp32, int8) = lossy
    arguments = [str(fp32.path), str(int8.path), "--evaluate", str(options.evaluate)]
    command = [sys.executable, "-m", "cluster", "compare", *arguments, "--max-drop", "0.04", "--json"]
    done = subprocess.run([*command, "--report", str(tmp_path / "r.html")], capture_output=True, text=True)
    assert done.returncode == 1 and "is not near enough" in done.stderr and "a drop of 0.0500" in done.stderr
    assert json.loads(done.stdout)["passed"] is False and "<svg" in (tmp_path / "r.html").read_text()
    near = CliRunner().invoke(compare, [*arguments, "--max-drop", "0.06"])
    assert near.exit_code == 0 and "source 1.0000, converted 0.9500" in near.output


def test_a_comparison_without_an_output_of_the_first_fails_unless_it_was_asked_for(tmp_path):
    def artifact(name, *outputs):
        x = TensorSpec("x", "FP32", (ANY, 2))
        specs = [TensorSpec(out, "FP32", (ANY, width)) for out, width in outputs]
        nodes = [helper.make_node("Concat", ["x"] * (s.shape[1] // 2), [s.name], axis=1) for s in specs]
        signature = Signature((x,), tuple(specs), batched=True, max_rows=8)
        sample = {"x": np.ones((2, 2), "f4")}
        return str(write_artifact(tmp_path / name, model_of(nodes, [x], specs), signature, sample).path)

    first, second = artifact("a", ("aux", 2), ("scores", 4)), artifact("b", ("aux", 2), ("logits", 6))
    lacking = CliRunner().invoke(compare, [first, second, "--report", str(tmp_path / "r.html")])
    assert isinstance(lacking.exception, ConversionFailed) and "not compared: scores" in lacking.exception.message
    assert "Not near enough" in (tmp_path / "r.html").read_text()
    asked = CliRunner().invoke(compare, [first, second, "--output", "aux"])
    assert asked.exit_code == 0 and "left out by --output: scores" in asked.output
    renamed = CliRunner().invoke(compare, [first, artifact("c", ("logits", 4), ("aux", 2)), "--json"])
    assert renamed.exit_code == 0 and "scores with logits" in json.loads(renamed.output)["notes"][0]
