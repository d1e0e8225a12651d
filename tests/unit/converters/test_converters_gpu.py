"""A GPU that was asked for is used or refused; a CPU is never taken in its place without a word."""

import pytest

from cluster.errors import EngineFailed
from converters import onnx_runtime
from converters.onnx_runtime import CPU, CUDA, open_session, providers
from converters.runtime import can_use_gpu
from onnx_models import mlp_artifact


def test_a_gpu_that_this_runtime_cannot_use_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_runtime.ort, "get_available_providers", lambda: [CPU])
    with pytest.raises(EngineFailed, match=r"accelerator: expected gpu, but this ONNX Runtime offers CPU"):
        open_session(mlp_artifact(tmp_path / "m").model_path, accelerator="gpu")


def test_only_auto_may_end_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_runtime.ort, "get_available_providers", lambda: [CPU])
    session = open_session(mlp_artifact(tmp_path / "m").model_path, accelerator="auto")
    assert session.get_providers() == [CPU]


def test_a_gpu_comes_first_where_it_is_offered():
    assert providers("auto", [CUDA, CPU]) == providers("gpu", [CUDA, CPU]) == [CUDA, CPU]
    assert providers("cpu", [CUDA, CPU]) == [CPU]


def test_a_format_says_whether_its_runtime_can_use_a_gpu_here(monkeypatch):
    monkeypatch.setattr(onnx_runtime.ort, "get_available_providers", lambda: [CUDA, CPU])
    assert can_use_gpu("onnx")
    monkeypatch.setattr(onnx_runtime.ort, "get_available_providers", lambda: [CPU])
    assert not can_use_gpu("onnx")
    assert not can_use_gpu("no such format")
