"""ONNX Runtime's TensorRT provider (TensorRT 10): near answers, engines built once and kept, nothing in silence."""

import time

import numpy as np
import onnx
import pytest
from gpu_machine import marks

from cluster.derived import DerivedFiles
from cluster.errors import EngineFailed, InvalidRequest
from converters.build import convert
from converters.candidate import Options
from converters.cuda_device import first_device
from converters.onnx.providers import TENSORRT
from converters.onnx.session import tensorrt_version
from converters.runtime import open_runtime
from onnx_models import mlp_artifact, mlp_model, text_artifact

pytestmark = marks(onnxruntime_gpu=True, tensorrt_major=10)


def rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 4)).astype("f4")


@pytest.fixture
def derived(tmp_path):
    return DerivedFiles(str(tmp_path / "store"), tmp_path / "cache")


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The network in FP32, FP16 and INT8 with explicit quantisation."""
    folder = tmp_path_factory.mktemp("forms")
    onnx.save(mlp_model(hidden=256), folder / "m.onnx")
    np.savez(folder / "rows.npz", x=rows(64))
    options = Options(sample=folder / "rows.npz", calibrate=folder / "rows.npz", max_rows=8, profile_s=0.05)
    names = ("onnx", "fp16", "int8-trt")
    return dict(zip(names, convert(folder / "m.onnx", folder / "out", names, options), strict=True))


@pytest.mark.parametrize(("form", "most"), [("onnx", 1e-2), ("fp16", 2e-2), ("int8-trt", 1e-1)])
def test_tensorrt_answers_as_the_cpu_does(forms, form, most, derived):
    artifact = forms[form]
    runtime = open_runtime(artifact, accelerator="gpu", provider="tensorrt", derived=derived)
    assert runtime.provider == TENSORRT
    for count in (1, 3, 8):
        (expected,), (got,) = open_runtime(artifact).run((rows(count, 1),)), runtime.run((rows(count, 1),))
        assert np.abs(got - expected).max() <= most * np.abs(expected).max()


def test_the_engine_is_built_once_and_loaded_after_that(forms, derived, tmp_path):
    took = []
    for _ in range(2):
        began_s = time.perf_counter()
        open_runtime(forms["onnx"], accelerator="gpu", provider="tensorrt", derived=derived)
        took.append(time.perf_counter() - began_s)
    (engine,) = (tmp_path / "store").rglob("*.engine")
    assert f"sm{first_device().capability.replace('.', '')}" in engine.name
    assert took[1] < took[0], took  # reading is quicker than building


def test_a_damaged_engine_is_built_again(forms, derived, tmp_path):
    open_runtime(forms["onnx"], accelerator="gpu", provider="tensorrt", derived=derived)
    (engine,) = (tmp_path / "store").rglob("*.engine")
    engine.write_bytes(b"no engine")
    runtime = open_runtime(forms["onnx"], accelerator="gpu", provider="tensorrt", derived=derived)
    assert runtime.run((rows(2),))[0].shape == (2, 3)


def test_more_rows_than_engines_were_built_for_are_the_callers_mistake(forms):
    runtime = open_runtime(forms["onnx"], accelerator="gpu", provider="tensorrt")
    with pytest.raises(InvalidRequest, match="outside the ranges"):
        runtime.run((rows(9),))


def test_a_share_of_the_gpu_still_builds(tmp_path):
    artifact = mlp_artifact(tmp_path / "a")
    assert open_runtime(artifact, accelerator="gpu", provider="tensorrt", gpu_share=0.25).provider == TENSORRT


def test_a_model_that_tensorrt_cannot_compute_is_refused(tmp_path):
    with pytest.raises(EngineFailed):
        open_runtime(text_artifact(tmp_path / "a"), accelerator="gpu", provider="tensorrt")


def test_the_version_of_tensorrt_is_told():
    assert tensorrt_version().startswith("10")
