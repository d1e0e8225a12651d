"""Native TensorRT 11 and TensorRT-RTX engines: each precision proved by running it here, and bound to this device."""

import json

import numpy as np
import onnx
import pytest
from gpu_machine import marks, missing

from cluster.artifact import Artifact
from cluster.derived import INDEX, DerivedFiles
from cluster.errors import EngineFailed, InvalidRequest
from converters.build import convert
from converters.candidate import Options
from converters.cuda_device import first_device
from converters.runtime import open_runtime
from converters.sample_answers import ANSWERS
from onnx_models import mlp_model

pytestmark = marks("torch")

FAMILIES = [
    pytest.param(
        "tensorrt", marks=pytest.mark.skipif(bool(why := missing("tensorrt", tensorrt_major=11)), reason=why or "there")
    ),
    pytest.param("tensorrt-rtx", marks=pytest.mark.skipif(bool(why := missing("tensorrt_rtx")), reason=why or "there")),
]
PRECISIONS = ("", "-fp16", "-bf16", "-int8", "-fp8")
LEAST_CAPABILITY = {"-bf16": (8, 0), "-fp8": (8, 9)}  # https://docs.nvidia.com/deeplearning/tensorrt, support matrix


def rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 4)).astype("f4")


def converted(folder, target, **options):
    folder.mkdir(exist_ok=True)
    onnx.save(mlp_model(hidden=256), folder / "m.onnx")
    np.savez(folder / "rows.npz", x=rows(32))
    settings = Options(calibrate=folder / "rows.npz", max_rows=8, profile_s=0.5, **options)
    (artifact,) = convert(folder / "m.onnx", folder / "out", (target,), settings)
    return artifact


def need(precision):
    needed = LEAST_CAPABILITY.get(precision, (0, 0))
    here = first_device().capability
    if tuple(map(int, here.split("."))) < needed:
        pytest.skip(f"{precision[1:]} needs compute capability {needed[0]}.{needed[1]}, this GPU has {here}")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_engines_are_executed_and_near_enough(family, precision, tmp_path):
    need(precision)
    artifact = converted(tmp_path, family + precision, device="gpu")
    assert artifact.parity()["executed"] is True and artifact.parity()["passed"] is True
    assert artifact.cost_curve("gpu").rows == (1, 2, 4, 8)
    runtime = open_runtime(artifact, accelerator="gpu")
    assert runtime.run((rows(8),))[0].shape == (8, 3)
    with pytest.raises(InvalidRequest, match="outside the ranges"):
        runtime.run((rows(9),))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_left_to_the_first_replica_is_built_once_and_answers_as_the_source(family, precision, tmp_path):
    need(precision)
    artifact = converted(tmp_path, family + precision, engine="on-load")
    assert artifact.parity()["executed"] is False
    derived = DerivedFiles(str(tmp_path / "store"), tmp_path / "cache")
    first = open_runtime(artifact, accelerator="gpu", derived=derived)
    (engine,) = (tmp_path / "store").rglob("*.engine")
    written = engine.stat().st_mtime_ns
    second = open_runtime(artifact, accelerator="gpu", derived=derived)
    assert engine.stat().st_mtime_ns == written
    np.testing.assert_allclose(second.run((rows(3),))[0], first.run((rows(3),))[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_damaged_kept_engine_is_built_again_and_a_damaged_artifact_is_refused(family, tmp_path):
    left = converted(tmp_path / "left", family, engine="on-load")
    derived = DerivedFiles(str(tmp_path / "store"), tmp_path / "cache")
    open_runtime(left, accelerator="gpu", derived=derived)
    (engine,) = (tmp_path / "store").rglob("*.engine")
    engine.write_bytes(b"no engine")
    assert open_runtime(left, accelerator="gpu", derived=derived).run((rows(2),))[0].shape == (2, 3)
    built = converted(tmp_path / "built", family)
    built.model_path.write_bytes(b"no engine")
    with pytest.raises(EngineFailed, match="cannot load it"):
        open_runtime(built, accelerator="gpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_is_not_served_by_a_cpu(family, tmp_path):
    with pytest.raises(EngineFailed, match="runs on a GPU, got cpu"):
        open_runtime(converted(tmp_path, family), accelerator="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_kept_file_that_is_no_engine_is_built_again(family, tmp_path):
    left = converted(tmp_path / "left", family, engine="on-load")
    derived = DerivedFiles(str(tmp_path / "store"), tmp_path / "cache")
    open_runtime(left, accelerator="gpu", derived=derived)
    (index,) = (tmp_path / "store").rglob(INDEX)
    key = json.loads(index.read_text())["key"]
    derived.discard(left.digest, key)
    (tmp_path / "no-engine").mkdir()
    (tmp_path / "no-engine" / "model.engine").write_bytes(b"no engine" * 100)
    derived.put(left.digest, key, tmp_path / "no-engine")
    assert open_runtime(left, accelerator="gpu", derived=derived).run((rows(2),))[0].shape == (2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_whose_answers_are_not_the_sources_is_refused(family, tmp_path):
    left = converted(tmp_path / "left", family, engine="on-load")
    with np.load(left.path / ANSWERS) as answers:
        wrong = {name: answers[name][::-1] for name in answers.files}
    np.savez(left.path / ANSWERS, **wrong)
    with pytest.raises(EngineFailed, match="does not answer the sample as the source does"):
        open_runtime(Artifact.read(left.path), accelerator="gpu")
