"""Engines that TensorRT-RTX really builds, without a GPU: `make test` runs this in an environment of its own."""

import numpy as np
import onnx
import pytest
import trt_models
from onnx import helper

from cluster.derived import DerivedFiles
from cluster.errors import ConversionFailed, EngineFailed, InvalidRequest
from cluster.tensors import ANY, TensorSpec
from converters.build import convert
from converters.candidate import Options
from converters.cuda_device import CudaDevice
from converters.runtime import open_runtime
from converters.tensorrt import on_load as tensorrt_on_load
from converters.tensorrt import runtime as tensorrt_runtime
from converters.tensorrt.engine import build_plan
from onnx_models import mlp_model, model_of

trt = pytest.importorskip("tensorrt_rtx")

QUICK = {"profile_s": 0.05, "max_rows": 8}
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
RTX = ("tensorrt-rtx", *(f"tensorrt-rtx-{precision}" for precision in PRECISIONS[1:]))


def save(model, path):
    onnx.save(model, path)
    return path


def bytes_of(model, folder):
    return save(model, folder / "source.onnx").read_bytes()


def builds(path, capability):
    """Whether TensorRT-RTX makes an engine for GPUs of this capability."""
    log = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, log).parse_from_file(str(path))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)
    shapes = builder.create_optimization_profile()
    shapes.set_shape("x", [1, 4], [8, 4], [8, 4])
    config.add_optimization_profile(shapes)
    return builder.build_serialized_network(network, config) is not None


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One model as an engine of each precision, and the file of timings."""
    folder = tmp_path_factory.mktemp("rtx")
    rows = np.random.default_rng(0).standard_normal((32, 4)).astype("f4")
    np.savez(folder / "rows.npz", x=rows)
    options = Options(calibrate=folder / "rows.npz", timing_cache=folder / "timings", **QUICK)
    told = []
    made = convert(save(mlp_model(hidden=256), folder / "m.onnx"), folder / "out", RTX, options, told.append)
    assert "tensorrt-rtx: the timing cache has no effect: TensorRT-RTX times nothing when it builds" in told
    return made, folder


def test_engines_of_every_precision_are_built_and_said_not_to_have_run(built):
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
        assert (artifact.path / "answers.npz").is_file() and not list(artifact.path.glob("*.onnx"))
    assert [artifact.manifest.precision for artifact in artifacts] == list(PRECISIONS)
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(RTX)


def test_each_precision_was_compared_by_what_computes_as_it_does(built):
    noise = [artifact.parity()["outputs"][0]["sqnr_db"] for artifact in built[0]]
    fp32, fp16, bf16, int8, fp8 = (float("inf") if db is None else db for db in noise)
    assert fp32 > fp16 > bf16 > int8 > fp8 > 15
    for artifact, rounded in zip(built[0], (False, False, True, False, True), strict=True):
        assert any("copy in FP32 that rounds" in note for note in artifact.parity()["notes"]) is rounded


def test_timings_are_written_where_they_are_asked_for(built):
    assert (built[1] / "timings").stat().st_size > 0


def test_an_engine_without_a_gpu_is_not_opened_by_mistake(built):
    with pytest.raises(EngineFailed, match="runs on a GPU, got cpu"):
        open_runtime(built[0][0])


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory):
    """The same models, their engines left to the replica."""
    folder = tmp_path_factory.mktemp("left")
    np.savez(folder / "rows.npz", x=np.random.default_rng(0).standard_normal((32, 4)).astype("f4"))
    options = Options(calibrate=folder / "rows.npz", engine="on-load", timing_cache=folder / "timings", **QUICK)
    targets = (*RTX, "tensorrt-int8")  # there is no TensorRT 11 here, which this does not need
    told = []
    made = convert(save(mlp_model(hidden=256), folder / "m.onnx"), folder / "out", targets, options, told.append)
    assert "tensorrt-int8: the timing cache has no effect: nothing is built here" in told
    return dict(zip((*PRECISIONS, "tensorrt-int8"), made, strict=True))


def test_an_engine_can_be_left_to_the_replica_without_a_builder(unbuilt):
    for name, (family, precision) in {"bf16": ("tensorrt-rtx", "bf16"), "tensorrt-int8": ("tensorrt", "int8")}.items():
        artifact = unbuilt[name]
        artifact.verify()
        assert (artifact.manifest.format, artifact.manifest.precision) == (family, precision)
        assert artifact.manifest.model_file == "model.onnx"
        assert artifact.manifest.extra["engine"] == {
            "build": "on-load",
            "precision": precision,
            "max_rows": 8,
            "profile": {"x": [[1, 4], [8, 4], [8, 4]]},
        }
        assert artifact.parity()["executed"] is False
        assert any(note.startswith("not built here: ") for note in artifact.parity()["notes"])
        assert "Not built here" in (artifact.path / "report.html").read_text()


def test_the_replica_builds_the_engine_checks_its_answers_and_keeps_it(unbuilt, tmp_path, monkeypatch):
    """TensorRT-RTX really builds; what its engine would answer on a GPU, the ONNX file that was proved answers."""
    artifact, loaded = unbuilt["bf16"], []
    source = trt_models.Runtime(None).deserialize_cuda_engine(bytes_of(mlp_model(hidden=256), tmp_path))

    def load(module, file):
        loaded.append((module, file.stat().st_size))
        return source

    monkeypatch.setattr(tensorrt_runtime, "TorchDevice", trt_models.Memory)
    monkeypatch.setattr(tensorrt_runtime, "load", load)
    derived = DerivedFiles(str(tmp_path / "store"), tmp_path / "cache")
    first = open_runtime(artifact, accelerator="gpu", derived=derived)
    built_s = derived.spent_s
    second = open_runtime(artifact, accelerator="gpu", derived=derived)
    assert built_s > 0 and derived.spent_s == built_s
    assert [module for module, _ in loaded] == ["tensorrt_rtx"] * 2
    assert loaded[0][1] == loaded[1][1] > 100_000
    for runtime in (first, second):
        assert runtime.run((np.zeros((2, 4), "f4"),))[0].shape == (2, 3)
    open_runtime(artifact, accelerator="gpu", derived=derived, gpu_share=0.25)
    assert derived.spent_s > built_s and len(loaded) == 3  # an engine of its own, that uses less memory
    built_s = derived.spent_s
    key = tensorrt_on_load.key_of("tensorrt_rtx", trt.__version__, trt_models.Memory.gpu)
    (derived.fetch(artifact.digest, key) / "model.engine").write_bytes(b"damaged")
    open_runtime(artifact, accelerator="gpu", derived=derived)
    assert loaded[3] == loaded[0] and derived.spent_s > built_s


def test_an_engine_that_answers_otherwise_is_refused(unbuilt, tmp_path, monkeypatch):
    other = trt_models.Runtime(None).deserialize_cuda_engine(bytes_of(mlp_model(hidden=256, seed=1), tmp_path))
    monkeypatch.setattr(tensorrt_runtime, "TorchDevice", trt_models.Memory)
    monkeypatch.setattr(tensorrt_runtime, "load", lambda module, file: other)
    with pytest.raises(EngineFailed, match="does not answer the sample as the source does: y: "):
        open_runtime(unbuilt["bf16"], accelerator="gpu")


def test_a_gpu_without_the_precision_is_told_in_one_line(unbuilt, monkeypatch):
    monkeypatch.setattr(tensorrt_runtime, "TorchDevice", lambda: trt_models.Memory())
    monkeypatch.setattr(trt_models.Memory, "gpu", CudaDevice("Tesla T4", "7.5", 16 << 30))
    with pytest.raises(
        EngineFailed, match=r"bf16 needs a GPU of compute capability 8\.0 or newer with tensorrt_rtx, Tesla T4 has 7\.5"
    ):
        open_runtime(unbuilt["bf16"], accelerator="gpu")


def test_an_engine_for_turing_is_built_for_it_alone(unbuilt):
    """What TensorRT-RTX builds by itself is for Ampere and newer."""
    profile = {"x": ([1, 4], [8, 4], [8, 4])}
    half = unbuilt["fp16"].model_path
    assert build_plan(trt, half, profile, b"", capability="7.5") != build_plan(trt, half, profile, b"")
    with pytest.raises(ConversionFailed, match="TensorRT cannot build this model"):
        build_plan(trt, unbuilt["fp32"].model_path, profile, b"", capability="7.5")


def test_arguments_and_damage_are_told_of_real_engines_too(built):
    with pytest.raises(InvalidRequest, match="threads"):
        open_runtime(built[0][0], threads=0, accelerator="gpu")
    with pytest.raises(InvalidRequest, match="leave no choice"):
        open_runtime(built[0][0], accelerator="gpu", provider="tensorrt")
    with pytest.raises(EngineFailed) as caught:
        open_runtime(built[0][0], accelerator="gpu")
    assert "\n" not in caught.value.message


def test_what_does_not_build_here_says_how_to_leave_it(tmp_path):
    source = save(mlp_model(), tmp_path / "m.onnx")
    with pytest.raises(ConversionFailed, match=r"tensorrt needs tensorrt, not installed .*--engine on-load"):
        convert(source, tmp_path / "out", ("tensorrt",), Options(**QUICK))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_least_gpu_of_a_precision_is_the_least_that_the_builder_takes(precision, unbuilt):
    """What `LEAST_CAPABILITY` says of each, TensorRT-RTX says too."""
    least = tensorrt_on_load.LEAST_CAPABILITY["tensorrt_rtx"][precision]
    path = unbuilt[precision].model_path
    for name, member in trt.ComputeCapability.__members__.items():
        if not name.startswith("SM"):
            continue
        capability = (int(name[2:-1]), int(name[-1]))
        assert builds(path, member) is (capability >= least), name


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
