"""Every form of an ONNX model, proved: on small models and on odd ones."""

import json
from dataclasses import replace
from pathlib import Path

import documented
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cluster.artifact import Artifact
from cluster.errors import ConversionFailed, InvalidRequest
from cluster.tensors import ANY, TensorSpec
from converters.build import convert, convert_what_works
from converters.candidate import Options
from converters.objective import parse_objective
from converters.optimize import DECISION, optimize
from converters.proof.comparison import compare_artifacts
from converters.runtime import open_runtime
from onnx_models import fixed_artifact, mlp_artifact, mlp_model, model_of, text_artifact, two_input_artifact

pytestmark = pytest.mark.usefixtures("forked_proofs")

QUICK = Options(profile_s=0.05, max_rows=8)


def silent(text):
    pass


def save(model, path):
    onnx.save(model, path)
    return path


@pytest.fixture
def mlp(tmp_path):
    """A source file, and data on which it is right about every row."""
    source = save(mlp_model(hidden=64), tmp_path / "m.onnx")
    x = np.random.default_rng(1).standard_normal((60, 4)).astype("f4")
    (y,) = open_runtime(mlp_artifact(tmp_path / "right", hidden=64)).run((x,))
    np.savez(tmp_path / "rows.npz", x=x)
    np.savez(tmp_path / "labelled.npz", x=x, label=y.argmax(1))
    return source, replace(QUICK, calibrate=tmp_path / "rows.npz", evaluate=tmp_path / "labelled.npz")


def test_every_form_is_compared_with_the_source_and_none_is_better_than_it_is(mlp, tmp_path):
    source, options = mlp
    names = ("onnx", "optimized", "fp16", "int8", "int8-dynamic", "int8-trt")
    artifacts = dict(zip(names, convert(source, tmp_path / "out", names, options), strict=True))
    precisions = [artifact.manifest.precision for artifact in artifacts.values()]
    assert precisions == ["fp32", "fp32", "fp16", "int8", "int8", "int8"]
    noise = {name: a.parity()["outputs"][0]["sqnr_db"] for name, a in artifacts.items()}
    assert noise["fp16"] > noise["int8"] > 15
    for name, artifact in artifacts.items():
        artifact.verify()
        parity, page = artifact.parity(), (artifact.path / "report.html").read_text()
        assert artifact.manifest.extra["target"] == name
        assert parity["passed"] and parity["evaluation"]["converted"] > 0.9
        assert {1, 3, 8} <= {case["rows"] for case in parity["cases"]}
        assert "Near enough" in page and all(other in page for other in names)
        profile = artifact.profile()["devices"]["cpu"]
        assert profile["first_call_s"] > 0 and profile["rss_bytes"] >= profile["loaded_bytes"] > 0
    # TensorRT's parser takes no zero points but 0: every one of them is.
    for tensor in onnx.load(artifacts["int8-trt"].model_path).graph.initializer:
        if "zero_point" in tensor.name:
            assert not onnx.numpy_helper.to_array(tensor).any()


def test_one_target_that_fails_does_not_stop_the_others(mlp, tmp_path):
    source, options = mlp
    strict = replace(options, tolerance={"sqnr": 50.0})
    made, failed = convert_what_works(source, tmp_path / "out", ("onnx", "fp16", "int8"), strict)
    assert list(made) == ["onnx", "fp16"] and "signal to noise" in failed["int8"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name in made) == ["fp16", "onnx"]


def test_a_quantised_model_is_not_quantised_again(mlp, tmp_path):
    source, options = mlp
    (int8,) = convert(source, tmp_path / "int8", ("int8",), options)
    with pytest.raises(ConversionFailed, match="quantised already"):
        convert(int8.model_path, tmp_path / "again", ("int8-dynamic",), QUICK)
    with pytest.raises(ConversionFailed, match="fp16: expected an fp32 model, got int8"):
        convert(int8.model_path, tmp_path / "again", ("fp16",), QUICK)


def test_a_bias_with_two_dimensions_is_quantised_too(mlp, tmp_path):
    _, options = mlp
    model = mlp_model(hidden=64)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("b"):
            tensor.dims.insert(0, 1)
    source = save(model, tmp_path / "wide.onnx")
    for artifact in convert(source, tmp_path / "out", ("int8", "int8-trt"), options):
        assert artifact.parity()["passed"]


def test_ranges_are_proved_at_their_edges_and_kept(tmp_path):
    source = two_input_artifact(tmp_path / "two").model_path
    (artifact,) = convert(source, tmp_path / "out", ("onnx",), replace(QUICK, dynamic=("b:1=1..40",)))
    assert artifact.manifest.extra["ranges"] == {"b:1": [1, 40]}
    assert {"edge b:1=1", "edge b:1=40"} <= {case["inputs"] for case in artifact.parity()["cases"]}
    with pytest.raises(InvalidRequest, match="a:1: that axis is not free"):
        convert(source, tmp_path / "no", ("onnx",), replace(QUICK, dynamic=("a:1=1..40",)))


def test_a_model_that_fails_at_the_edge_of_its_range_is_refused(tmp_path):
    spec_in, spec_out = TensorSpec("x", "FP32", (ANY, ANY)), TensorSpec("y", "FP32", (ANY, ANY))
    node = helper.make_node("Add", ["x", "bias"], ["y"])  # works for 16 columns, and for one
    model = model_of([node], [spec_in], [spec_out], {"bias": np.ones((1, 16), "f4")})
    with pytest.raises(ConversionFailed, match=r"edge x:1=8"):
        convert(save(model, tmp_path / "m.onnx"), tmp_path / "out", ("onnx",), replace(QUICK, dynamic=("x:1=8..16",)))


def test_text_fixed_sizes_and_several_inputs_are_optimised_too(tmp_path):
    for make in (text_artifact, fixed_artifact, two_input_artifact):
        source = make(tmp_path / make.__name__).model_path
        (artifact,) = convert(source, tmp_path / f"{make.__name__}-out", ("optimized",), QUICK)
        assert artifact.parity()["passed"]
        with pytest.raises(ConversionFailed, match="no matrix product"):
            convert(source, tmp_path / "no", ("int8-dynamic",), QUICK)


def test_fp16_inputs_and_control_flow_are_proved(tmp_path):
    x, y = TensorSpec("x", "FP16", (ANY, 2)), TensorSpec("y", "FP16", (ANY, 2))
    source = save(model_of([helper.make_node("Relu", ["x"], ["y"])], [x], [y]), tmp_path / "half.onnx")
    (half,) = convert(source, tmp_path / "half", ("onnx",), QUICK)
    assert half.manifest.signature.inputs[0].dtype == "FP16" and half.parity()["passed"]

    def branch(op):
        out = helper.make_tensor_value_info("b", TensorProto.FLOAT, [None, 2])
        return helper.make_graph([helper.make_node(op, ["x"], ["b"])], op, [], [out])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["hot"]),
        helper.make_node("If", ["hot"], ["y"], then_branch=branch("Neg"), else_branch=branch("Abs")),
    ]
    specs = TensorSpec("x", "FP32", (ANY, 2)), TensorSpec("y", "FP32", (ANY, 2))
    model = model_of(nodes, [specs[0]], [specs[1]], {"limit": np.array(9, "f4")})
    (branching,) = convert(save(model, tmp_path / "if.onnx"), tmp_path / "if", ("optimized",), QUICK)
    big = np.array([[10, -1]], "f4")
    np.testing.assert_array_equal(open_runtime(branching).run((big,))[0], -big)


def test_two_artifacts_are_compared_by_the_same_measures(tmp_path):
    a, b = mlp_artifact(tmp_path / "a"), mlp_artifact(tmp_path / "b", seed=1)
    same = compare_artifacts(a.path, a.model_path, QUICK, silent)
    assert same.failures == () and same.parity["outputs"][0]["worst_abs"] == 0
    other = compare_artifacts(a.path, b.path, QUICK, silent)
    assert any("signal to noise" in text for text in other.failures) and "Not near enough" in other.page
    with pytest.raises(InvalidRequest, match="compare: expected the same inputs"):
        compare_artifacts(a.path, two_input_artifact(tmp_path / "c").path, QUICK, silent)


def test_models_that_are_no_artifacts_are_compared_in_the_form_their_framework_runs(tmp_path):
    torch = pytest.importorskip("torch")
    artifact = mlp_artifact(tmp_path / "a")
    weights = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t)) for t in artifact_weights(artifact)}

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 16), torch.nn.Linear(16, 3)
            for layer, w, b in ((self.first, "w1", "b1"), (self.second, "w2", "b2")):
                layer.load_state_dict({"weight": weights[w].T, "bias": weights[b]})

        def forward(self, row):
            return self.second(self.first(row).relu())

    rows = {"row": {0: torch.export.Dim("rows")}}
    exported = torch.export.export(Net().eval(), (torch.zeros(2, 4),), dynamic_shapes=rows)
    torch.export.save(exported, tmp_path / "net.pt2")
    told = []
    found = compare_artifacts(tmp_path / "net.pt2", artifact.path, QUICK, told.append)
    assert found.failures == () and "net.pt2 is run as pytorch" in told
    assert {case["inputs"] for case in found.parity["cases"]} == {"sample"}  # the artifact's, whose input is called x
    assert 0 < found.parity["outputs"][0]["worst_abs"] < 1e-4
    with pytest.raises(InvalidRequest, match=r"saved_model\.pb"):
        compare_artifacts(artifact.path, tmp_path, QUICK, silent)


def artifact_weights(artifact):
    return onnx.load(artifact.model_path).graph.initializer


def test_the_readmes_search_keeps_the_best_form_with_the_settings_to_serve_it(mlp, tmp_path, monkeypatch):
    source, _ = mlp
    source.rename(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    arguments = documented.command("README.md", "^prism optimize")
    printed = documented.run_quickly([*arguments, "--max-rows", "8", "--threads", "1"], monkeypatch)
    kept = Artifact.read(tmp_path / "best")
    kept.verify()
    decision = json.loads((kept.path / DECISION).read_bytes())
    tried = {"onnx", "optimized", "int8", "int8-dynamic"}
    assert kept.manifest.extra["serving"] == decision["serving"] and f"kept {decision['best']['target']}" in printed
    assert kept.manifest.extra["target"] == decision["best"]["target"] in tried
    assert decision["serving"]["max_batch_rows"] in (1, 2, 4, 8)
    assert {entry["target"] for entry in decision["tried"]} == tried
    assert [entry["verdict"] for entry in decision["tried"]].count("kept") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_an_objective_that_nothing_holds_leaves_nothing_behind(mlp, tmp_path):
    source, options = mlp
    with pytest.raises(ConversionFailed, match=r"no configuration holds p99<0\.001ms: onnx, 1 thread"):
        optimize(source, tmp_path / "best", parse_objective("p99<1us"), options, silent, ("onnx",), (1,))
    assert not (tmp_path / "best").exists()


def test_torchscript_needs_no_factory_and_is_searched_for_code_that_reaches_out(tmp_path):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.drop = torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(self.dense(x))

    class Reaches(torch.nn.Module):
        def forward(self, x):
            return x + torch.from_file("sprung", True, 4)

    torch.manual_seed(0)
    torch.jit.script(Net()).save(tmp_path / "net.pt")
    torch.jit.script(Reaches()).save(tmp_path / "reaches.pt")
    options = replace(QUICK, inputs=("x:FP32:N,4",))
    (artifact,) = convert(tmp_path / "net.pt", tmp_path / "out", ("onnx",), options)
    assert artifact.manifest.source["kind"] == "torchscript-file" and artifact.manifest.signature.batched
    assert any("training mode" in note for note in artifact.parity()["notes"])
    with pytest.raises(ConversionFailed, match=r"its code uses 'from_file'.*--trust-pickle"):
        convert(tmp_path / "reaches.pt", tmp_path / "no", ("onnx",), options)
    assert not Path("sprung").exists()
