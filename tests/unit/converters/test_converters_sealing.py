"""What an artifact is closed with: the model, its weights and the evidence, and nothing that a tool left there."""

import onnx
import pytest

from cluster.errors import ConversionFailed
from converters.candidate import Candidate
from converters.sealing import refuse_strays
from onnx_models import mlp_model


@pytest.fixture
def candidate(tmp_path):
    """A model with its weights in a file below its folder, and evidence beside it."""
    (tmp_path / "weights").mkdir()
    file = tmp_path / "model.onnx"
    onnx.save(mlp_model(), file, save_as_external_data=True, location="weights/all.bin", size_threshold=0)
    (tmp_path / "sample.npz").touch()
    return Candidate(file, "fp32", {})


def test_a_model_its_weights_and_evidence_are_what_belongs_in_an_artifact(candidate):
    refuse_strays(candidate)


@pytest.mark.parametrize("name", ["8f2c.data", "weights/more.bin", "model.onnx.data"])
def test_what_no_model_refers_to_is_named_and_not_sealed(candidate, name):
    (candidate.path.parent / name).write_bytes(b"weights once more")
    with pytest.raises(ConversionFailed, match=rf"nothing beside it but its weights, got \['{name}'\]"):
        refuse_strays(candidate)


def test_the_folder_of_another_format_is_its_own_concern(candidate, tmp_path):
    refuse_strays(Candidate(tmp_path / "sample.npz", "fp32", {}))
