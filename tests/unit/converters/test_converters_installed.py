"""Packages that exclude each other are named, with the way out."""

import pytest

from cluster.errors import EngineFailed, OperatorError
from converters import runtime
from converters.installed import TENSORRT_PROVIDER, refuse_conflicts


def having(**versions):
    return lambda name: versions.get(name.replace("-", "_"))


def test_one_of_each_pair_is_fine():
    refuse_conflicts(having(onnxruntime="1.31.1", tensorflow_cpu="2.21.0", xgboost_cpu="3.2.0", tensorrt_cu13="11.4.0"))


def test_two_packages_that_own_the_same_folder_are_named_with_the_remedy():
    with pytest.raises(OperatorError) as caught:
        refuse_conflicts(having(onnxruntime="1.31.1", onnxruntime_gpu="1.30.0"))
    message = caught.value.message
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0" in message
    assert "own the folder onnxruntime/" in message
    # removing only one would take files of the other along
    assert (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]==1.30.0'" in message
    )
    assert "or 'onnxruntime==1.31.1' to keep that one" in message


def test_every_conflict_is_reported_at_once():
    found = having(tensorflow="2.21.0", tensorflow_cpu="2.21.0", xgboost="3", xgboost_cpu="3")
    with pytest.raises(OperatorError, match=r"tensorflow 2.*; xgboost 3"):
        refuse_conflicts(found)


@pytest.mark.parametrize("runtime_of_extra", ["onnxruntime", "onnxruntime_gpu"])
def test_modelopt_belongs_in_an_environment_of_its_own(runtime_of_extra):
    versions = {runtime_of_extra: "1.31.1", "nvidia_modelopt": "0.47.0"}
    with pytest.raises(OperatorError) as caught:
        refuse_conflicts(having(**versions))
    name = runtime_of_extra.replace("_", "-")
    assert f"{name} 1.31.1 and nvidia-modelopt 0.47.0 are both installed" in caught.value.message
    assert "environment of its own (pip uninstall -y nvidia-modelopt)" in caught.value.message


def test_the_tensorrt_provider_takes_version_10_and_not_11():
    refuse_conflicts(having(onnxruntime_gpu="1.31.1", tensorrt_cu13="10.16.1.11"), TENSORRT_PROVIDER)
    with pytest.raises(OperatorError, match=r"tensorrt-cu13 11\.4\.0.*needs TensorRT 10.*--provider cuda"):
        refuse_conflicts(having(onnxruntime_gpu="1.31.1", tensorrt_cu13="11.4.0"), TENSORRT_PROVIDER)


def test_native_engines_and_the_cuda_provider_do_well_beside_each_other():
    refuse_conflicts(having(onnxruntime_gpu="1.31.1", tensorrt_cu13="11.4.0"))


def test_this_environment_has_no_conflict():
    refuse_conflicts()


def test_a_runtime_that_is_not_installed_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    with pytest.raises(EngineFailed, match=r"needs onnxruntime, not installed \(pip install 'prism-serving\[cpu\]'\)"):
        runtime.entry_of("onnx")
