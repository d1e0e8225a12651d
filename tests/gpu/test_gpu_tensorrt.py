"""Native TensorRT 11 and TensorRT-RTX engines: each precision proved by running it here, and bound to this device."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from gpu_machine import marks, missing

from cluster.artifact import Artifact
from cluster.derived import DerivedFiles
from cluster.errors import EngineFailed, InvalidRequest
from converters.build import convert, convert_what_works
from converters.candidate import Options
from converters.cuda_device import first_device
from converters.runtime import open_runtime
from converters.tensorrt.on_load import require
from converters.tensorrt.runtime import module_of
from onnx_models import mlp_model

pytestmark = marks("torch")

FAMILIES = [
    pytest.param(
        "tensorrt", marks=pytest.mark.skipif(bool(why := missing("tensorrt", tensorrt_major=11)), reason=why or "there")
    ),
    pytest.param("tensorrt-rtx", marks=pytest.mark.skipif(bool(why := missing("tensorrt_rtx")), reason=why or "there")),
]
PRECISIONS = ("", "-fp16", "-bf16", "-int8", "-fp8")
KEPT = TemporaryDirectory(prefix="prism-gpu-engines-")


def rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 4)).astype("f4")


def inputs(folder):
    """The network and rows to calibrate with, in `folder`."""
    folder.mkdir(exist_ok=True)
    onnx.save(mlp_model(hidden=256), folder / "m.onnx")
    np.savez(folder / "rows.npz", x=rows(32))
    return folder / "m.onnx", folder / "rows.npz"


def unable(family, precision):
    """Why this GPU has no engines of the family in a precision; "" if it has."""
    try:
        require(module_of(family), precision.removeprefix("-") or "fp32", first_device())
    except EngineFailed as error:
        return error.message
    return ""


@cache
def engines(family):
    """Engines of every precision that this GPU has, made at once, and why the others could not be made."""
    folder = Path(KEPT.name, family)
    model, data = inputs(folder)
    options = Options(calibrate=data, max_rows=8, profile_s=0.2, device="gpu")
    targets = [family + precision for precision in PRECISIONS if not unable(family, precision)]
    return convert_what_works(model, folder / "out", targets, options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_engines_are_executed_and_near_enough(family, precision):
    if why := unable(family, precision):
        pytest.skip(why)
    made, failures = engines(family)
    assert family + precision in made, failures
    artifact = made[family + precision]
    assert artifact.parity()["executed"] is True and artifact.parity()["passed"] is True
    assert artifact.cost_curve("gpu").rows == (1, 2, 4, 8)
    runtime = open_runtime(artifact, accelerator="gpu")
    assert runtime.run((rows(8),))[0].shape == (8, 3)
    with pytest.raises(InvalidRequest, match="outside the ranges"):
        runtime.run((rows(9),))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_left_to_the_first_replica_is_built_once_and_again_if_it_is_damaged(family, tmp_path):
    model, data = inputs(tmp_path)
    settings = Options(calibrate=data, max_rows=8, profile_s=0.2, engine="on-load")
    (artifact,) = convert(model, tmp_path / "out", (f"{family}-fp16",), settings)
    assert artifact.parity()["executed"] is False
    derived = DerivedFiles(str(tmp_path / "store"), tmp_path / "cache")
    (expected,) = open_runtime(artifact, accelerator="gpu", derived=derived).run((rows(3),))
    (engine,) = (tmp_path / "store").rglob("*.engine")
    written = engine.stat().st_mtime_ns
    (again,) = open_runtime(artifact, accelerator="gpu", derived=derived).run((rows(3),))
    np.testing.assert_allclose(again, expected, rtol=1e-3, atol=1e-3)
    assert engine.stat().st_mtime_ns == written
    engine.write_bytes(b"no engine")
    (rebuilt,) = open_runtime(artifact, accelerator="gpu", derived=derived).run((rows(3),))
    np.testing.assert_allclose(rebuilt, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_damaged_engine_of_an_artifact_and_a_cpu_are_refused(family, tmp_path):
    made, failures = engines(family)
    assert family in made, failures
    with pytest.raises(EngineFailed, match="runs on a GPU, got cpu"):
        open_runtime(made[family], accelerator="cpu")
    shutil.copytree(made[family].path, tmp_path / "copy")
    damaged = Artifact.read(tmp_path / "copy")
    damaged.model_path.write_bytes(b"no engine")
    with pytest.raises(EngineFailed, match="cannot load it"):
        open_runtime(damaged, accelerator="gpu")
