"""The source's answers that travel with an artifact, and what is compared with them."""

from dataclasses import asdict

import numpy as np
import pytest

from cluster.artifact import PARITY, SAMPLE
from cluster.errors import ArtifactCorrupt, EngineFailed
from converters.proof.parity import TOLERANCES
from converters.proof.sample_answers import ANSWERS, check_answers, write_answers
from converters.sealing import write_json
from onnx_models import mlp_artifact


class Saying:
    """A runtime that answers with what it was given."""

    def __init__(self, *answers):
        self.answers = answers

    def run(self, inputs):
        return self.answers


@pytest.fixture
def artifact(tmp_path):
    artifact = mlp_artifact(tmp_path / "a")
    write_json(artifact.path / PARITY, {"tolerance": asdict(TOLERANCES["int8"])})
    return artifact


def answers(artifact, rows=4):
    (spec,) = artifact.manifest.signature.outputs
    values = np.random.default_rng(0).standard_normal((rows, spec.shape[1])).astype("f4")
    write_answers(artifact.path, [spec], (values,))
    return values


def test_an_artifact_without_answers_is_not_compared(artifact):
    assert check_answers(Saying(), artifact) is False


def test_near_enough_is_what_parity_says(artifact):
    values = answers(artifact)
    assert check_answers(Saying(values * 1.01), artifact) is True
    with pytest.raises(EngineFailed, match=r"as the source does: .*signal to noise"):
        check_answers(Saying(values[::-1]), artifact)


def test_one_row_of_a_few_may_have_another_top_class_and_two_may_not(artifact):
    values = answers(artifact)
    order = np.argsort(values, axis=1)
    swapped = values.copy()
    for row in range(2):
        top, second = order[row, -1], order[row, -2]
        values[row, second] = values[row, top] - 1e-4
        swapped[row] = values[row]
        swapped[row, [top, second]] = values[row, [second, top]]
    write_answers(artifact.path, artifact.manifest.signature.outputs, (values,))
    one = np.concatenate([swapped[:1], values[1:]])
    assert check_answers(Saying(one), artifact) is True
    with pytest.raises(EngineFailed, match=r"top class agrees in 50\.0%"):
        check_answers(Saying(swapped), artifact)


def test_answers_that_cannot_be_read_are_a_corrupt_artifact(artifact):
    values = answers(artifact)
    (artifact.path / ANSWERS).write_bytes(b"?")
    with pytest.raises(ArtifactCorrupt, match=ANSWERS):
        check_answers(Saying(values), artifact)
    np.savez(artifact.path / ANSWERS, other=values)
    with pytest.raises(ArtifactCorrupt, match=ANSWERS):
        check_answers(Saying(values), artifact)
    answers(artifact)
    write_json(artifact.path / PARITY, {})
    with pytest.raises(ArtifactCorrupt, match=r"parity\.json: tolerance"):
        check_answers(Saying(values), artifact)
    (artifact.path / SAMPLE).unlink()
    with pytest.raises(ArtifactCorrupt, match=SAMPLE):
        check_answers(Saying(values), artifact)
