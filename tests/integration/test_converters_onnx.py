"""ONNX files become artifacts: checked, confined, proved and measured in processes of their own."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from cluster.artifact import Artifact, sha256_of
from cluster.errors import ArtifactCorrupt, ConversionFailed, InvalidRequest
from cluster.tensors import ANY, TensorSpec
from converters import isolated
from converters.build import convert
from converters.candidate import Options
from converters.runtime import open_runtime
from converters.wrap import wrap
from onnx_models import fixed_artifact, mlp_artifact, mlp_model, model_of, text_artifact, two_input_artifact

QUICK = Options(profile_s=0.05)
X2, Y2 = TensorSpec("x", "FP32", (ANY, 2)), TensorSpec("y", "FP32", (ANY, 2))


def save(model, path):
    onnx.save(model, path)
    return path


def test_a_wrapped_model_answers_as_the_file_does_and_says_what_it_costs(tmp_path):
    said = []
    file = save(mlp_model(), tmp_path / "m.onnx")
    artifact = wrap(file, tmp_path / "out", max_rows=4, options=Options(profile_s=1), say=said.append)
    artifact.verify()
    signature = artifact.manifest.signature
    assert (signature.batched, signature.max_rows) == (True, 4)
    assert artifact.manifest.source["file"] == "m.onnx"
    assert artifact.parity()["kind"] == "self" and artifact.parity()["passed"] is True
    assert artifact.cost_curve().rows == (1, 2, 4)
    x = np.ones((2, 4), "f4")
    expected = ReferenceEvaluator(mlp_model()).run(None, {"x": x})[0]
    np.testing.assert_allclose(open_runtime(artifact).run((x,))[0], expected, rtol=1e-5)
    assert said[0].startswith("onnx: ")


def test_an_artifact_directory_is_given_back_and_a_damaged_one_refused(tmp_path):
    artifact = mlp_artifact(tmp_path / "a")
    assert wrap(artifact.path, tmp_path / "unused").digest == artifact.digest
    artifact.model_path.write_bytes(b"x")
    with pytest.raises(ArtifactCorrupt, match=r"model\.onnx"):
        wrap(artifact.path, tmp_path / "unused")


def test_text_several_inputs_and_free_sizes_are_wrapped(tmp_path):
    text = wrap(text_artifact(tmp_path / "t").model_path, tmp_path / "tw", options=QUICK)
    assert text.manifest.signature.inputs[0].dtype == "BYTES"
    two = wrap(two_input_artifact(tmp_path / "m").model_path, tmp_path / "mw", options=QUICK)
    assert [spec.name for spec in two.manifest.signature.inputs] == ["a", "b"]
    guessed, told = two.manifest.extra["notes"]
    assert "no size was stated" in guessed and "axis 1 of b is free and was proved at 16 only" in told


def test_a_fixed_first_dimension_means_no_batching(tmp_path):
    artifact = wrap(fixed_artifact(tmp_path / "f").model_path, tmp_path / "w", options=QUICK)
    assert (artifact.manifest.signature.batched, artifact.manifest.signature.max_rows) == (False, 1)
    assert artifact.manifest.extra["notes"] == ["dimension 0 of x is fixed to 2: requests are not batched"]


def test_an_output_without_a_row_per_input_row_means_no_batching(tmp_path):
    total = TensorSpec("total", "FP32", (ANY,))
    node = helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0)
    model = model_of([node], [X2], [total], {"axes": np.array([0], "i8")})
    artifact = wrap(save(model, tmp_path / "m.onnx"), tmp_path / "w", options=QUICK)
    assert artifact.manifest.signature.batched is False
    assert "output total" in artifact.manifest.extra["notes"][0]


def test_a_batch_size_baked_in_behind_a_free_dimension_is_found(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    model = model_of(nodes, [X2], [Y2], {"shape": np.array([1, 2], "i8")})
    file = save(model, tmp_path / "m.onnx")
    with pytest.raises(ConversionFailed, match=r"its rows are free, and answers 1, but with 3 rows"):
        wrap(file, tmp_path / "w", options=QUICK)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx"]
    with pytest.raises(ConversionFailed, match="fails on 1 rows of random data"):
        convert(file, tmp_path / "w", options=Options(inputs=("x:FP32:3,2",), max_rows=1))


def test_rows_that_influence_each_other_are_refused_and_served_unbatched_on_request(tmp_path):
    file = save(model_of([helper.make_node("Softmax", ["x"], ["y"], axis=0)], [X2], [Y2]), tmp_path / "m.onnx")
    with pytest.raises(ConversionFailed, match=r"in company differs .* --max-rows 1"):
        wrap(file, tmp_path / "w", options=QUICK)
    assert wrap(file, tmp_path / "w", max_rows=1, options=QUICK).manifest.signature.batched is False


def test_a_model_that_answers_differently_each_time_is_refused(tmp_path):
    nodes = [helper.make_node("RandomUniformLike", ["x"], ["y"])]
    with pytest.raises(ConversionFailed, match="differs"):
        wrap(save(model_of(nodes, [X2], [Y2]), tmp_path / "m.onnx"), tmp_path / "w", max_rows=1, options=QUICK)


def test_damaged_files_are_one_clear_line(tmp_path):
    file = tmp_path / "m.onnx"
    for content in (b"", b"not a model", mlp_model().SerializeToString()[:60]):
        file.write_bytes(content)
        with pytest.raises(ConversionFailed) as caught:
            wrap(file, tmp_path / "w", options=QUICK)
        assert "m.onnx" in caught.value.message and "\n" not in caught.value.message


def test_an_operator_that_the_runtime_does_not_have_is_named(tmp_path):
    model = model_of([helper.make_node("Frobnicate", ["x"], ["y"], domain="my.ops")], [X2], [Y2])
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    with pytest.raises(ConversionFailed, match=r"loading the model: .*Frobnicate"):
        wrap(save(model, tmp_path / "m.onnx"), tmp_path / "w", options=QUICK)


def test_half_precision_is_compared_as_half_precision(tmp_path):
    specs = [TensorSpec("x", "FP16", (ANY, 2))], [TensorSpec("y", "FP16", (ANY, 2))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    file = save(model_of(nodes, *specs, {"w": np.eye(2, dtype="f2")}), tmp_path / "m.onnx")
    artifact = wrap(file, tmp_path / "w", options=QUICK)
    assert artifact.manifest.precision == "fp16"
    assert artifact.manifest.signature.inputs[0].dtype == "FP16"


def test_two_outputs_of_one_name_are_refused(tmp_path):
    model = mlp_model()
    model.graph.output.add().CopyFrom(model.graph.output[0])
    with pytest.raises((ConversionFailed, InvalidRequest)):
        wrap(save(model, tmp_path / "m.onnx"), tmp_path / "w", options=QUICK)
    assert not (tmp_path / "w").exists()


def external(model, location):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return model


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "link.bin", ""])
def test_external_data_cannot_leave_the_models_folder(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    file = save(external(mlp_model(), location), folder / "m.onnx")
    with pytest.raises(ConversionFailed, match=r"external data: .* (leaves|link out of) the model's folder"):
        wrap(file, tmp_path / "w", options=QUICK)


def test_external_data_beside_the_model_comes_along(tmp_path):
    model = mlp_model(hidden=64)
    expected = ReferenceEvaluator(mlp_model(hidden=64)).run(None, {"x": np.ones((1, 4), "f4")})[0]
    file = tmp_path / "m.onnx"
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    artifact = wrap(file, tmp_path / "w", options=QUICK)
    assert artifact.manifest.source["external"] == {"weights.bin": sha256_of(tmp_path / "weights.bin")}
    (tmp_path / "weights.bin").unlink()
    np.testing.assert_allclose(open_runtime(artifact).run((np.ones((1, 4), "f4"),))[0], expected, rtol=1e-5)


def test_an_interpreter_that_dies_is_a_failed_conversion(tmp_path, monkeypatch):
    killer = tmp_path / "killer.py"
    killer.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    real = subprocess.run
    monkeypatch.setattr(
        isolated.subprocess, "run", lambda command, **options: real([sys.executable, str(killer)], **options)
    )
    with pytest.raises(ConversionFailed, match=r"killed by SIGSEGV"):
        wrap(save(mlp_model(), tmp_path / "m.onnx"), tmp_path / "w", options=QUICK)
    assert signal.SIGSEGV and not (tmp_path / "w").exists()


def test_int8_needs_calibration_data(tmp_path):
    with pytest.raises(InvalidRequest, match="calibrate: int8 needs calibration data"):
        convert(save(mlp_model(), tmp_path / "m.onnx"), tmp_path / "w", ("int8",), QUICK)


def test_int8_of_an_onnx_file_is_compared_with_the_file(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 4)).astype("f4")
    np.savez(tmp_path / "c.npz", x=x)
    options = Options(calibrate=tmp_path / "c.npz", profile_s=0.05, max_rows=8)
    (artifact,) = convert(save(mlp_model(), tmp_path / "m.onnx"), tmp_path / "w", ("int8",), options)
    parity = artifact.parity()
    assert artifact.manifest.precision == "int8" and parity["kind"] == "onnx"
    assert 15 < parity["outputs"][0]["sqnr_db"] < 80
    assert {case["inputs"] for case in parity["cases"]} == {"calibration"}


def test_int8_below_its_gate_leaves_nothing_behind(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 4)).astype("f4")
    np.savez(tmp_path / "c.npz", x=x)
    options = Options(calibrate=tmp_path / "c.npz", profile_s=0.05, tolerance={"sqnr": 90.0})
    with pytest.raises(ConversionFailed, match=r"int8 model differs from the onnx source: y: signal to noise"):
        convert(save(mlp_model(), tmp_path / "m.onnx"), tmp_path / "w", ("onnx", "int8"), options)
    assert sorted(os.listdir(tmp_path)) == ["c.npz", "m.onnx"]


def test_labels_must_fit_an_output(tmp_path):
    file = save(mlp_model(), tmp_path / "m.onnx")
    with pytest.raises(InvalidRequest, match="labels: expected as many"):
        convert(file, tmp_path / "w", options=Options(labels=("a", "b"), profile_s=0.05))
    (artifact,) = convert(file, tmp_path / "w", options=Options(labels=("a", "b", "c"), profile_s=0.05))
    assert artifact.manifest.labels == ("a", "b", "c")


def test_the_command_prints_one_line_for_an_error_and_json_for_programs(tmp_path):
    file = save(mlp_model(), tmp_path / "m.onnx")
    code = "from cluster.cli.main import main; main()"
    command = [sys.executable, "-c", code, "convert", str(file)]
    bad = subprocess.run([*command, "-o", str(tmp_path / "w"), "--to", "gguf"], capture_output=True, text=True)
    assert bad.returncode == 1 and bad.stderr.startswith("error: to: expected some of onnx, ")
    assert bad.stderr.endswith(", got 'gguf'\n") and bad.stderr.count("\n") == 1
    good = subprocess.run(
        [*command, "-o", str(tmp_path / "w"), "--max-rows", "2", "--json"], capture_output=True, text=True
    )
    (summary,) = json.loads(good.stdout)
    assert summary["parity"]["passed"] is True and summary["digest"] == Artifact.read(tmp_path / "w").digest
    listed = subprocess.run([sys.executable, "-c", code, "convert", "--list", "--json"], capture_output=True, text=True)
    assert {(r["from"], r["to"]) for r in json.loads(listed.stdout)} >= {("torch", "onnx"), ("onnx", "int8")}
