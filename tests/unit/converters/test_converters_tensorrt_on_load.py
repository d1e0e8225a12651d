"""Engines that are built where they are needed: when they are built, kept, believed and built again."""

import logging
from dataclasses import replace

import pytest

from cluster.artifact import Artifact, Manifest, hash_files, write_manifest
from cluster.derived import DerivedFiles
from cluster.errors import ArtifactCorrupt, EngineFailed
from cluster.tensors import ANY, Signature, TensorSpec
from converters.cuda_device import CudaDevice
from converters.tensorrt import on_load as tensorrt_on_load
from converters.tensorrt.on_load import key_of, opened_on_load, require, target_of
from converters.tensorrt.recipe import EXTRA, Recipe

RECIPE = Recipe("fp16", 8, {"x": ([1, 4], [8, 4], [8, 4])})
SIGNATURE = Signature((TensorSpec("x", "FP32", (ANY, 4)),), (TensorSpec("y", "FP32", (ANY, 2)),), True, 8)
T4 = CudaDevice("Tesla T4", "7.5", 16 << 30)
H100 = CudaDevice("NVIDIA H100 80GB HBM3", "9.0", 80 << 30)


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"onnx")
    extra = {EXTRA: RECIPE.to_json()}
    return write_manifest(
        folder,
        Manifest("tensorrt", "fp16", "model.onnx", SIGNATURE, {}, {}, hash_files(folder), "now", extra=extra),
    )


@pytest.fixture
def derived(tmp_path):
    return DerivedFiles(str(tmp_path / "store"), tmp_path / "cache")


class Builder:
    """Builds engines whose bytes count the builds, and opens those that are not in `useless`."""

    def __init__(self):
        self.built = []
        self.useless = set()

    def build(self, artifact, recipe, key, file):
        assert recipe == RECIPE
        self.built.append(key["runtime"])
        file.write_bytes(b"engine %d" % len(self.built))

    def open(self, file):
        content = file.read_bytes()
        if content in self.useless:
            raise EngineFailed("it does not answer the sample as the source does")
        return content

    def engine(self, artifact, derived, gpu=T4, version="11.4.0"):
        key = key_of("tensorrt", version, gpu)
        return opened_on_load(artifact, RECIPE, key, derived, self.open, self.build)


def test_an_engine_is_built_once_for_a_kind_of_gpu_and_a_version(artifact, derived):
    builder = Builder()
    assert builder.engine(artifact, derived) == b"engine 1"
    assert builder.engine(artifact, derived) == b"engine 1"
    assert builder.engine(artifact, derived, gpu=H100) == b"engine 2"
    assert builder.engine(artifact, derived, version="11.5.0") == b"engine 3"
    assert builder.engine(artifact, derived) == b"engine 1"


def test_another_machine_with_such_a_gpu_takes_the_engine_from_the_store(artifact, derived, tmp_path):
    Builder().engine(artifact, derived)
    second = Builder()
    assert second.engine(artifact, DerivedFiles(str(tmp_path / "store"), tmp_path / "other")) == b"engine 1"
    assert second.built == []


def test_a_kept_engine_of_no_use_is_built_again_and_the_new_one_kept(artifact, derived, caplog):
    Builder().engine(artifact, derived)
    builder = Builder()
    builder.useless = {b"engine 1"}
    builder.build = lambda artifact, recipe, key, file: file.write_bytes(b"better")
    with caplog.at_level(logging.WARNING):
        assert builder.engine(artifact, derived) == b"better"
    assert "built again: it does not answer the sample" in caplog.text
    assert builder.engine(artifact, derived) == b"better"


def test_a_new_engine_of_no_use_is_an_error_and_kept_nowhere(artifact, derived):
    builder = Builder()
    builder.useless = {b"engine 1"}
    with pytest.raises(EngineFailed, match="sample"):
        builder.engine(artifact, derived)
    assert derived.fetch(artifact.digest, key_of("tensorrt", "11.4.0", T4)) is None


def test_without_a_place_to_keep_it_an_engine_is_built_each_time(artifact):
    builder = Builder()
    assert [builder.engine(artifact, None) for _ in range(2)] == [b"engine 1", b"engine 2"]


def test_a_tensorrt_engine_fits_one_model_of_gpu_and_an_rtx_engine_an_architecture():
    other = replace(T4, name="another of 7.5")
    assert key_of("tensorrt", "11.4.0", T4) != key_of("tensorrt", "11.4.0", other)
    assert key_of("tensorrt_rtx", "1.7.1", T4) == key_of("tensorrt_rtx", "1.7.1", other)
    assert key_of("tensorrt_rtx", "1.7.1", T4) != key_of("tensorrt_rtx", "1.7.1", H100)
    assert key_of("tensorrt", "1.7.1", T4) != key_of("tensorrt_rtx", "1.7.1", T4)


def test_an_engine_of_a_shared_gpu_is_another_and_its_builder_is_told_the_bound(artifact, monkeypatch, tmp_path):
    key = key_of("tensorrt", "11.4.0", T4, workspace_bytes=4 << 30)
    assert key != key_of("tensorrt", "11.4.0", T4)
    asked = []
    monkeypatch.setattr(tensorrt_on_load, "run_task", lambda request, doing: asked.append(request))
    tensorrt_on_load.build_engine(artifact, RECIPE, key, tmp_path / "engine")
    tensorrt_on_load.build_engine(artifact, RECIPE, key_of("tensorrt", "11.4.0", T4), tmp_path / "engine")
    assert [request["workspace_bytes"] for request in asked] == [4 << 30, 0]
    tensorrt_on_load.build_engine(artifact, RECIPE, key_of("tensorrt_rtx", "1.7.1", T4), tmp_path / "engine")
    assert [request["capability"] for request in asked] == ["", "", "7.5"]
    assert asked[0]["module"] == "tensorrt" and asked[0]["profile"] == {"x": [[1, 4], [8, 4], [8, 4]]}


@pytest.mark.parametrize(
    ("module", "precision", "capability", "needed"),
    [
        ("tensorrt", "fp8", "8.6", "8.9"),
        ("tensorrt", "bf16", "7.5", "8.0"),
        ("tensorrt_rtx", "fp32", "7.5", "8.0"),
        ("tensorrt_rtx", "int8", "7.5", "8.0"),
        ("tensorrt_rtx", "fp8", "8.6", "8.9"),
    ],
)
def test_a_precision_that_the_gpu_does_not_have_is_named(module, precision, capability, needed):
    said = rf"{precision} needs a GPU of compute capability {needed} or newer with {module}, T4 has {capability}"
    with pytest.raises(EngineFailed, match=said):
        require(module, precision, CudaDevice("T4", capability, 16 << 30))
    require(module, precision, CudaDevice("T4", needed, 16 << 30))
    require(module, precision, CudaDevice("B200", "10.0", 16 << 30))


def test_what_tensorrt_builds_for_turing_is_not_what_tensorrt_rtx_does():
    for precision in ("fp32", "fp16", "int8"):
        require("tensorrt", precision, T4)
    require("tensorrt_rtx", "fp16", T4)
    assert target_of("tensorrt_rtx", "7.5") == "7.5"  # what it builds for by itself does not run there
    assert [target_of("tensorrt_rtx", "8.9"), target_of("tensorrt_rtx", "12.0"), target_of("tensorrt", "7.5")] == [
        ""
    ] * 3


def manifest(extra):
    return Manifest("tensorrt", "fp16", "model.onnx", SIGNATURE, {}, {}, {}, "now", extra=extra)


def test_a_recipe_survives_its_manifest(artifact):
    assert Recipe.of(Artifact.read(artifact.path).manifest) == RECIPE
    assert Recipe.of(manifest({})) is None


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("soon", "manifest.extra.engine"),
        ({**RECIPE.to_json(), "max_rows": "many"}, r"max_rows"),
        ({**RECIPE.to_json(), "profile": {"x": [[1], [2]]}}, "profile"),
        ({**RECIPE.to_json(), "build": "never"}, "expected 'on-load', got 'never'"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_a_corrupt_artifact(stated, said):
    with pytest.raises(ArtifactCorrupt, match=said):
        Recipe.of(manifest({EXTRA: stated}))
