"""Engines that TensorRT-RTX really builds, without a GPU: `make test` runs this in an environment of its own."""

import numpy as np
import onnx
import pytest
from onnx import helper

from cluster.errors import ConversionFailed, EngineFailed
from cluster.tensors import ANY, TensorSpec
from converters.build import convert
from converters.candidate import Options
from converters.runtime import open_runtime
from onnx_models import mlp_model, model_of

pytest.importorskip("tensorrt_rtx")

QUICK = {"profile_s": 0.05, "max_rows": 8}
RTX = ("tensorrt-rtx", "tensorrt-rtx-fp16", "tensorrt-rtx-int8")


def save(model, path):
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One model as an engine of each precision, and the file of timings."""
    folder = tmp_path_factory.mktemp("rtx")
    rows = np.random.default_rng(0).standard_normal((32, 4)).astype("f4")
    np.savez(folder / "rows.npz", x=rows)
    options = Options(calibrate=folder / "rows.npz", timing_cache=folder / "timings", **QUICK)
    return convert(save(mlp_model(hidden=256), folder / "m.onnx"), folder / "out", RTX, options), folder


def test_fp32_fp16_and_int8_engines_are_built_and_said_not_to_have_run(built):
    artifacts, folder = built
    for artifact in artifacts:
        artifact.verify()
        assert artifact.manifest.format == "tensorrt-rtx"
        assert artifact.model_path.stat().st_size > 1000
        assert artifact.manifest.extra["profile"] == {"x": [[1, 4], [8, 4], [8, 4]]}
        parity = artifact.parity()
        assert parity["passed"] is True and parity["executed"] is False
        assert any("built, not executed here" in note for note in parity["notes"])
        assert artifact.profile() == {"devices": {}}
        assert "Built, not executed here" in (artifact.path / "report.html").read_text()
    assert [artifact.manifest.precision for artifact in artifacts] == ["fp32", "fp16", "int8"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(RTX)


def test_timings_are_written_where_they_are_asked_for(built):
    assert (built[1] / "timings").stat().st_size > 0


def test_an_engine_without_a_gpu_is_not_opened_by_mistake(built):
    with pytest.raises(EngineFailed, match="runs on a GPU, got cpu"):
        open_runtime(built[0][0])


def test_a_free_axis_needs_a_range(tmp_path):
    spec_in, spec_out = TensorSpec("x", "FP32", (ANY, ANY)), TensorSpec("y", "FP32", (ANY, ANY))
    source = save(model_of([helper.make_node("Relu", ["x"], ["y"])], [spec_in], [spec_out]), tmp_path / "m.onnx")
    with pytest.raises(ConversionFailed, match="--dynamic x:1=MIN"):
        convert(source, tmp_path / "out", RTX[:1], Options(**QUICK))
    (artifact,) = convert(source, tmp_path / "out", RTX[:1], Options(dynamic=("x:1=2..32",), **QUICK))
    assert artifact.manifest.extra["profile"] == {"x": [[1, 2], [8, 16], [8, 32]]}
    assert {"edge x:1=2", "edge x:1=32"} <= {case["inputs"] for case in artifact.parity()["cases"]}


def test_what_the_parser_does_not_know_is_a_failed_conversion(tmp_path):
    spec = TensorSpec("text", "BYTES", (ANY, 1))
    out = TensorSpec("same", "BYTES", (ANY, 1))
    source = save(model_of([helper.make_node("Identity", ["text"], ["same"])], [spec], [out]), tmp_path / "m.onnx")
    with pytest.raises(ConversionFailed, match="TensorRT cannot"):
        convert(source, tmp_path / "out", RTX[:1], Options(**QUICK))
    assert not (tmp_path / "out").exists()
