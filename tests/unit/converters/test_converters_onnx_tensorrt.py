"""Engines of ONNX Runtime's TensorRT provider are built once for a kind of GPU, kept, and built again if of no use."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.artifact import write_manifest
from cluster.derived import DerivedFiles
from cluster.errors import ArtifactCorrupt, EngineFailed, InvalidRequest
from converters.cuda_device import CudaDevice, first_device, used_bytes
from converters.onnx import runtime as onnx_runtime
from converters.onnx import session as onnx_session
from converters.onnx import tensorrt as onnx_tensorrt
from converters.onnx.providers import CPU, CUDA, TENSORRT
from converters.onnx.tensorrt import open_on_tensorrt, ranges_of
from converters.runtime import open_runtime
from onnx_models import mlp_artifact

GPU = CudaDevice("NVIDIA H100 80GB HBM3", "9.0", 80 << 30)


class Ort:
    """Sessions as ONNX Runtime would make them where TensorRT is: an engine is read from the cache, or built into it.

    `refused`: contents of engines that TensorRT does not take. `builds`: what a build writes; None: nothing.
    """

    def __init__(self, builds=b"engine"):
        self.builds, self.refused, self.made, self.options = builds, set(), 0, []

    def __call__(self, path, settings, providers, enable_fallback):
        options = dict(providers).get(TENSORRT)
        self._providers = [name for name, _ in providers]
        if options is not None:
            self.options.append(options)
            self._engine(options)
        return self

    def _engine(self, options):
        folder = options.get("trt_engine_cache_path")
        kept = sorted(Path(folder).glob("*.engine")) if folder else []
        if kept and kept[0].read_bytes() in self.refused:
            raise RuntimeError("TensorRT EP could not deserialize engine from cache")
        if not kept:
            self.made += 1
            if folder and self.builds is not None:
                Path(folder, "graph_sm90.engine").write_bytes(self.builds)

    def get_providers(self):
        return self._providers

    def get_provider_graph_assignment_info(self):
        return [type("Part", (), {"ep_name": self._providers[0], "get_nodes": lambda self: [None]})()]


def on_tensorrt(path, settings, providers, enable_fallback):
    """The model itself, on the CPU, which says that it is on TensorRT."""
    session = onnx_session.ort.InferenceSession(path, settings, providers=[CPU])
    session.get_providers = lambda: [name for name, _ in providers]
    session.get_provider_graph_assignment_info = Ort()(path, settings, providers, 0).get_provider_graph_assignment_info
    return session


@pytest.fixture
def artifact(tmp_path):
    return mlp_artifact(tmp_path / "a", max_rows=16)


@pytest.fixture
def derived(tmp_path):
    return DerivedFiles(str(tmp_path / "store"), tmp_path / "cache")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(onnx_session.ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnx_session, "_load_libraries", lambda rung: "")
    monkeypatch.setattr(onnx_tensorrt, "tensorrt_version", lambda: "101601")
    monkeypatch.setattr(onnx_tensorrt, "first_device", lambda: GPU)


def test_the_second_replica_loads_what_the_first_one_built(artifact, derived):
    ort = Ort()
    open_on_tensorrt(artifact, 1, "gpu", 1.0, derived, ort)
    open_on_tensorrt(artifact, 1, "gpu", 1.0, derived, ort)
    assert ort.made == 1
    built, loaded = ort.options
    assert built["trt_timing_cache_enable"] == "True" and loaded["trt_timing_cache_enable"] == "False"
    assert built["trt_profile_max_shapes"] == "x:16x4" and built["trt_profile_min_shapes"] == "x:1x4"


@pytest.mark.parametrize(
    "other",
    [
        {"first_device": lambda: replace(GPU, name="NVIDIA A100")},
        {"tensorrt_version": lambda: "101700"},
    ],
)
def test_another_gpu_or_another_tensorrt_builds_its_own(artifact, derived, other, monkeypatch):
    ort = Ort()
    open_on_tensorrt(artifact, 1, "gpu", 1.0, derived, ort)
    for name, value in other.items():
        monkeypatch.setattr(onnx_tensorrt, name, value)
    open_on_tensorrt(artifact, 1, "gpu", 1.0, derived, ort)
    assert ort.made == 2


def test_a_kept_engine_that_is_not_taken_is_built_again(artifact, derived):
    ort = Ort()
    open_on_tensorrt(artifact, 1, "gpu", 1.0, derived, ort)
    ort.refused, ort.builds = {b"engine"}, b"a better one"
    open_on_tensorrt(artifact, 1, "gpu", 1.0, derived, ort)
    open_on_tensorrt(artifact, 1, "gpu", 1.0, derived, ort)
    assert ort.made == 2


def test_an_engine_that_would_be_built_while_requests_wait_is_refused(artifact, derived):
    with pytest.raises(EngineFailed, match="built nothing while the model was loaded"):
        open_on_tensorrt(artifact, 1, "gpu", 1.0, derived, Ort(builds=None))


def test_a_share_of_a_gpu_bounds_what_layers_may_use(artifact):
    ort = Ort()
    open_on_tensorrt(artifact, 1, "gpu", 0.25, None, ort)
    open_on_tensorrt(artifact, 1, "gpu", 1.0, None, ort)
    assert [options.get("trt_max_workspace_size") for options in ort.options] == [str(20 << 30), None]


def test_without_a_gpu_tensorrt_is_refused_and_with_auto_replaced(artifact, monkeypatch, caplog):
    monkeypatch.setattr(onnx_tensorrt, "first_device", lambda: None)
    with pytest.raises(EngineFailed, match="driver finds no GPU"):
        open_on_tensorrt(artifact, 1, "gpu", 1.0, None, Ort())
    assert open_on_tensorrt(artifact, 1, "auto", 1.0, None, Ort()).get_providers() == [CUDA, CPU]
    assert "a lesser provider will do" in caplog.text


def test_sizes_outside_what_engines_were_built_for_are_the_callers_mistake(artifact, monkeypatch):
    monkeypatch.setattr(onnx_runtime, "open_on_tensorrt", lambda *a: open_on_tensorrt(*a, create=on_tensorrt))
    runtime = open_runtime(artifact, accelerator="gpu", provider="tensorrt")
    assert runtime.provider == TENSORRT and runtime.placed == {TENSORRT: 1}
    assert runtime.run((np.zeros((16, 4), "f4"),))[0].shape == (16, 3)
    with pytest.raises(InvalidRequest, match=r"x of shape \[17, 4\] is outside the ranges"):
        runtime.run((np.zeros((17, 4), "f4"),))


def test_ranges_that_make_no_sense_are_a_damaged_artifact(artifact):
    manifest = replace(artifact.manifest, extra={"ranges": {"x:1": [4, 8]}})
    (found,) = ranges_of(write_manifest(artifact.path, manifest))
    assert (found.name, found.axis, found.low, found.high) == ("x", 1, 4, 8)
    for wrong in ({"x:1": [8, 4]}, {"x:1": 8}, ["x"]):
        with pytest.raises(ArtifactCorrupt, match=r"manifest\.extra\.ranges"):
            ranges_of(write_manifest(artifact.path, replace(manifest, extra={"ranges": wrong})))


class Driver:
    """NVIDIA's driver with one GPU, or with an error code at one of its calls."""

    def __init__(self, fails=None):
        self.fails = fails

    def __getattr__(self, call):
        def answer(*arguments):
            if call == self.fails:
                return 100  # CUDA_ERROR_NO_DEVICE
            if call == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA L4"
            elif call == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 9}[arguments[1]]
            elif call == "cuDeviceTotalMem_v2":
                arguments[0]._obj.value = 24 << 30
            elif call == "cuDeviceGetPCIBusId":
                arguments[0].value = b"0000:65:00.0"
            elif call == "nvmlDeviceGetHandleByPciBusId_v2":
                arguments[1]._obj.value = 7 if arguments[0].value == b"0000:65:00.0" else 8
            elif call == "nvmlDeviceGetMemoryInfo":
                arguments[1]._obj.used = 3 << 30 if arguments[0].value == 7 else 0
            return 0

        return answer


def test_the_driver_tells_name_capability_and_memory():
    assert first_device(lambda name: Driver()) == CudaDevice("NVIDIA L4", "8.9", 24 << 30)


def test_the_driver_tells_what_is_in_use_on_this_processs_gpu():
    assert used_bytes(lambda name: Driver()) == 3 << 30


@pytest.mark.parametrize("call", ["cuInit", "nvmlInit_v2", "nvmlDeviceGetMemoryInfo"])
def test_a_driver_that_does_not_tell_what_is_in_use_is_no_error(call):
    assert used_bytes(lambda name: Driver(call)) is None


def test_what_is_in_use_is_not_known_without_the_library():
    def load(name):
        if "nvidia-ml" in name:
            raise OSError(name)
        return Driver()

    assert used_bytes(load) is None


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet", "cuDeviceTotalMem_v2"])
def test_a_driver_without_a_gpu_is_no_gpu(call):
    assert first_device(lambda name: Driver(call)) is None


def test_a_machine_without_a_driver_has_no_gpu():
    def load(name):
        raise OSError(f"{name}: cannot open shared object file")

    assert first_device(load) is None


def test_tensorrt_that_cannot_be_loaded_is_named_with_what_brings_it():
    def load(name):
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(EngineFailed, match=r"libnvinfer.so.10 .*ort-tensorrt"):
        onnx_session.tensorrt_version(load)
    version = type("Library", (), {"getInferLibVersion": lambda self: 101601})()
    assert onnx_session.tensorrt_version(lambda name: version) == "101601"
