"""What every runtime owes, whatever it runs. Artifacts of other formats join the list as their runtimes exist."""

import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import trt_models

from cluster.artifact import Artifact
from cluster.errors import ArtifactCorrupt, EngineFailed, InvalidRequest
from converters.runtime import open_runtime
from onnx_models import fixed_artifact, mlp_artifact, sample, text_artifact, two_input_artifact

MAKERS = [mlp_artifact, two_input_artifact, fixed_artifact, text_artifact, *trt_models.MAKERS]
if find_spec("tensorflow") and find_spec("ai_edge_litert"):  # in the environment that `make env-tensorflow` makes
    import tf_models

    MAKERS += tf_models.MAKERS
elif find_spec("torch"):  # in the environment of everything else
    import torch_models

    MAKERS += torch_models.MAKERS


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def artifact(request, tmp_path):
    return request.param(tmp_path / "artifact")


@pytest.fixture(autouse=True)
def tensorrt_or_its_stand_in(monkeypatch):
    trt_models.stand_in(monkeypatch)


def opened(artifact):
    """The artifact's runtime, on the only device that it has."""
    return open_runtime(artifact, accelerator="gpu" if "tensorrt" in artifact.manifest.format else "cpu")


def test_outputs_are_contiguous_and_as_the_signature_says(artifact):
    runtime = opened(artifact)
    outputs = runtime.run(sample(artifact))
    assert runtime.signature == artifact.manifest.signature
    for spec, array in zip(runtime.signature.outputs, outputs, strict=True):
        assert spec.admits(array.shape)
        assert array.dtype == np.dtype(spec.numpy)
        assert array.flags.c_contiguous


def test_a_second_call_gives_the_same_answer(artifact):
    runtime = opened(artifact)
    first, second = runtime.run(sample(artifact)), runtime.run(sample(artifact))
    for a, b in zip(first, second, strict=True):
        assert a.tolist() == b.tolist()


@pytest.mark.parametrize("make", [make for make in MAKERS if "fixed" not in make.__name__], ids=lambda m: m.__name__)
def test_rows_in_company_are_answered_as_alone(make, tmp_path):
    artifact = make(tmp_path / "artifact")
    runtime = opened(artifact)
    inputs = sample(artifact)
    together = runtime.run(inputs)
    for row in range(inputs[0].shape[0]):
        alone = runtime.run(tuple(array[row : row + 1] for array in inputs))
        for a, b in zip(alone, together, strict=True):
            if trt_models.family() == artifact.manifest.format and a.dtype.kind == "f":
                np.testing.assert_allclose(a, b[row : row + 1], rtol=1e-3, atol=1e-3)  # other rows, other kernels
            else:
                assert a.tolist() == b[row : row + 1].tolist()


def test_a_shape_the_model_cannot_take_is_the_callers_mistake(artifact):
    runtime = opened(artifact)
    with pytest.raises(InvalidRequest, match="refuses these inputs"):
        runtime.run(tuple(array[..., None] for array in sample(artifact)))


def test_arguments_that_make_no_sense_are_refused(artifact):
    with pytest.raises(InvalidRequest, match="threads"):
        open_runtime(artifact, threads=0)
    with pytest.raises(InvalidRequest, match="accelerator: expected one of auto, cpu, gpu"):
        open_runtime(artifact, accelerator="tpu")


def test_a_damaged_model_is_an_engine_failure_in_one_line(artifact):
    artifact.model_path.write_bytes(artifact.model_path.read_bytes()[:40])
    with pytest.raises(EngineFailed) as caught:
        opened(artifact)
    assert "\n" not in caught.value.message


def test_a_model_that_is_not_what_the_manifest_says_is_refused(tmp_path):
    mlp, fixed = mlp_artifact(tmp_path / "a"), fixed_artifact(tmp_path / "b")
    two = two_input_artifact(tmp_path / "c")
    shutil.copy(two.model_path, mlp.model_path)
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.signature\.inputs"):
        open_runtime(Artifact.read(mlp.path))
    assert open_runtime(fixed)


def test_text_comes_in_as_bytes_or_str_and_goes_out_as_bytes(tmp_path):
    runtime = open_runtime(text_artifact(tmp_path))
    (answer,) = runtime.run((np.array([["zwölf"], ["zwölf".encode()]], dtype=object),))
    assert answer.tolist() == [["zwölf".encode()]] * 2


def test_bytes_that_are_no_text_are_the_callers_mistake(tmp_path):
    runtime = open_runtime(text_artifact(tmp_path))
    with pytest.raises(InvalidRequest, match="text: expected UTF-8"):
        runtime.run((np.array([[b"\xff\xfe"]], dtype=object),))


def test_a_provider_is_chosen_for_onnx_artifacts_only(artifact):
    expected = "provider: expected tensorrt" if artifact.manifest.format == "onnx" else "leave no choice"
    with pytest.raises((EngineFailed, InvalidRequest), match=expected):
        open_runtime(artifact, accelerator="gpu", provider="tensorrt")
