"""A provider that was asked for is used or refused; a lesser one is never taken in its place without a word."""

import re

import numpy as np
import pytest

from cluster.errors import EngineFailed, InvalidRequest
from cluster.tensors import ANY, Signature, TensorSpec
from converters.onnx import session as onnx_session
from converters.onnx.providers import CPU, CUDA, TENSORRT, TensorRtOptions, profile_for, rungs, shortfall
from converters.onnx.session import open_session
from converters.ranges import AxisRange
from converters.runtime import can_use_gpu, open_runtime
from onnx_models import mlp_artifact

BOTH = (TENSORRT, CUDA, CPU)


def test_with_gpu_there_is_one_choice_and_with_auto_each_lesser_one_after_it():
    assert rungs("gpu", "auto", BOTH) == rungs("gpu", "cuda", BOTH) == ((CUDA, CPU),)
    assert rungs("gpu", "tensorrt", BOTH) == ((TENSORRT, CUDA, CPU),)
    assert rungs("auto", "tensorrt", BOTH) == ((TENSORRT, CUDA, CPU), (CUDA, CPU), (CPU,))
    assert rungs("auto", "tensorrt", (CUDA, CPU)) == ((CUDA, CPU), (CPU,))
    assert rungs("auto", "auto", (CPU,)) == rungs("cpu", "auto", BOTH) == ((CPU,),)


@pytest.mark.parametrize(
    ("accelerator", "provider", "error", "said"),
    [
        ("gpu", "auto", EngineFailed, "expected gpu, but this ONNX Runtime offers CPUExecutionProvider"),
        ("gpu", "tensorrt", EngineFailed, "expected tensorrt, but this ONNX Runtime offers"),
        ("cpu", "cuda", InvalidRequest, "expected auto with accelerator cpu, got cuda"),
        ("gpu", "rocm", InvalidRequest, "expected one of auto, cuda, tensorrt, got 'rocm'"),
    ],
)
def test_what_cannot_be_had_is_refused_before_a_session_is_made(accelerator, provider, error, said):
    with pytest.raises(error, match=said):
        rungs(accelerator, provider, (CPU,))


def test_a_session_with_all_providers_and_nodes_on_the_first_lacks_nothing():
    assert shortfall(BOTH, BOTH, {TENSORRT: 1, CPU: 40}) == ""
    assert shortfall(BOTH, BOTH, None) == ""  # an ONNX Runtime that does not tell where nodes are
    assert shortfall((CPU,), (CPU,), None) == ""


@pytest.mark.parametrize(
    ("asked", "started", "placed", "said"),
    [
        ((CUDA, CPU), (CPU,), None, "could start only CPUExecutionProvider"),
        (BOTH, (CUDA, CPU), {CUDA: 9}, "could start only CUDAExecutionProvider, CPUExecutionProvider"),
        (BOTH, (TENSORRT, CPU), {TENSORRT: 9}, "could start only TensorrtExecutionProvider, CPUExecutionProvider"),
        ((CUDA, CPU), (CPU, CUDA), {CUDA: 9}, "could start only"),
        (BOTH, BOTH, {CUDA: 9}, "takes none of the model's nodes \\(9 on CUDAExecutionProvider"),
        ((CUDA, CPU), (CUDA, CPU), {CPU: 3}, "takes none of the model's nodes \\(3 on CPUExecutionProvider"),
        ((CUDA, CPU), (CUDA, CPU), {}, "none anywhere"),
    ],
)
def test_a_session_that_is_less_than_what_was_asked_for_is_named(asked, started, placed, said):
    assert re.search(said, shortfall(asked, started, placed))


def test_tensorrt_is_told_shapes_and_cache_and_never_a_precision(tmp_path):
    profile = {"ids": ([1, 4], [8, 16], [8, 128]), "mask": ([1, 4], [8, 16], [8, 128])}
    told = TensorRtOptions(profile, tmp_path, building=True, workspace_bytes=1 << 30).to_provider()
    assert told["trt_profile_min_shapes"] == "ids:1x4,mask:1x4"
    assert told["trt_profile_opt_shapes"] == "ids:8x16,mask:8x16"
    assert told["trt_profile_max_shapes"] == "ids:8x128,mask:8x128"
    assert told["trt_engine_cache_path"] == told["trt_timing_cache_path"] == str(tmp_path)
    assert told["trt_max_workspace_size"] == str(1 << 30)
    # with either of them TensorRT may compute any layer in less than what was proved
    assert told["trt_fp16_enable"] == told["trt_int8_enable"] == "False"


def test_a_kept_folder_is_only_read():
    told = TensorRtOptions({}, None).to_provider()
    assert told["trt_engine_cache_enable"] == told["trt_timing_cache_enable"] == "False"
    assert not any("profile" in name or "path" in name or "workspace" in name for name in told)


def test_engines_are_for_any_number_of_rows_and_the_proved_ranges():
    ids = TensorSpec("ids", "INT64", (ANY, ANY))
    signature = Signature((ids, TensorSpec("bias", "FP32", (ANY, 4))), (TensorSpec("y", "FP32", (ANY, 3)),), True, 32)
    assert profile_for(signature, [AxisRange("ids", 1, 4, 128)]) == {
        "ids": ([1, 4], [32, 16], [32, 128]),
        "bias": ([1, 4], [32, 4], [32, 4]),
    }
    with pytest.raises(EngineFailed, match=r"--dynamic ids:1=MIN\.\.MAX"):
        profile_for(signature, [])


def test_a_name_that_would_be_read_as_something_else_is_refused():
    signature = Signature((TensorSpec("x:0", "FP32", (ANY, 4)),), (TensorSpec("y", "FP32", (ANY, 3)),), True, 8)
    with pytest.raises(EngineFailed, match="'x:0'"):
        profile_for(signature, [])


class Session:
    """What a session tells of its providers and of where its nodes are."""

    def __init__(self, providers, placed):
        self._providers, self._placed = providers, placed

    def get_providers(self):
        return list(self._providers)

    def get_provider_graph_assignment_info(self):
        return [type("Part", (), {"ep_name": k, "get_nodes": lambda self, n=n: [None] * n})() for k, n in self._placed]


def offering(monkeypatch, *providers):
    monkeypatch.setattr(onnx_session.ort, "get_available_providers", lambda: list(providers))
    monkeypatch.setattr(onnx_session, "_load_libraries", lambda rung: "")


def test_onnx_runtime_itself_falls_back_in_silence_and_that_is_an_error(tmp_path, monkeypatch):
    """A real session: this ONNX Runtime has no CUDA, gets told to use it, warns, and computes on the CPU."""
    offering(monkeypatch, CUDA, CPU)
    path = mlp_artifact(tmp_path / "m").model_path
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(EngineFailed, match=r"expected CUDAExecutionProvider, .* could start only CPUExecutionProvider"),
    ):
        open_session(path, accelerator="gpu")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_only_auto_may_end_on_the_cpu_and_says_so(tmp_path, monkeypatch, caplog):
    offering(monkeypatch, CUDA, CPU)
    artifact = mlp_artifact(tmp_path / "m")
    runtime = open_runtime(artifact, accelerator="auto")
    assert runtime.provider == CPU and runtime.placed == {}
    assert runtime.run((np.zeros((2, 4), "f4"),))[0].shape == (2, 3)
    assert "a lesser provider will do" in caplog.text and "could start only CPUExecutionProvider" in caplog.text


def test_a_model_whose_nodes_all_run_on_the_cpu_is_not_served_as_if_on_a_gpu(tmp_path, monkeypatch):
    """As trees do: CUDA starts, and takes none of them."""
    offering(monkeypatch, CUDA, CPU)
    path = mlp_artifact(tmp_path / "m").model_path
    with pytest.raises(EngineFailed, match="takes none of the model's nodes"):
        open_session(path, accelerator="gpu", create=lambda *a, **k: Session((CUDA, CPU), [(CPU, 3)]))
    some = Session((CUDA, CPU), [(CUDA, 2), (CPU, 3), (CUDA, 1)])
    assert open_session(path, accelerator="gpu", create=lambda *a, **k: some) is some


def test_tensorrt_that_ends_on_cuda_is_an_error_unless_that_is_allowed(tmp_path, monkeypatch, caplog):
    offering(monkeypatch, *BOTH)
    path = mlp_artifact(tmp_path / "m").model_path
    asked = []

    def create(path, settings, providers, enable_fallback):
        asked.append([name for name, _ in providers])
        assert enable_fallback == 0
        return Session((CUDA, CPU), [(CUDA, 3)])

    with pytest.raises(EngineFailed, match="expected TensorrtExecutionProvider"):
        open_session(path, accelerator="gpu", provider="tensorrt", create=create)
    assert open_session(path, accelerator="auto", provider="tensorrt", create=create).get_providers()[0] == CUDA
    assert asked == [list(BOTH), list(BOTH), [CUDA, CPU]]
    assert "a lesser provider will do" in caplog.text


def test_libraries_that_are_not_found_are_named(tmp_path, monkeypatch):
    def preload():
        print("Skip loading something else")
        print("Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file")

    monkeypatch.setattr(onnx_session.ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnx_session.ort, "preload_dlls", preload)
    with pytest.raises(
        EngineFailed, match=r"could start only CPUExecutionProvider \(not found: libcublasLt\.so\.13\)$"
    ):
        open_session(tmp_path / "m", accelerator="gpu", create=lambda *a, **k: Session((CPU,), []))


def test_a_format_says_whether_its_runtime_can_use_a_gpu_here(monkeypatch):
    offering(monkeypatch, CUDA, CPU)
    assert can_use_gpu("onnx")
    offering(monkeypatch, CPU)
    assert not can_use_gpu("onnx")
    assert not can_use_gpu("no such format")
