import json

import pytest

from cluster.artifact import MANIFEST, PROFILE, Artifact, Manifest, hash_files, write_manifest
from cluster.errors import ArtifactCorrupt, InvalidRequest
from cluster.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), True, 8)


@pytest.fixture
def artifact(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"weights")
    (tmp_path / PROFILE).write_text(json.dumps({"devices": {"cpu": {"seconds_by_rows": {"1": 0.1, "4": 0.2}}}}))
    manifest = Manifest(
        "onnx", "fp32", "model.onnx", SIGNATURE, {"kind": "onnx"}, {"onnx": "1"}, hash_files(tmp_path), "2026-01-01"
    )
    return write_manifest(tmp_path, manifest)


def test_an_artifact_reads_back_and_verifies(artifact):
    artifact.verify()
    again = Artifact.read(artifact.path)
    assert again == artifact
    assert again.cost_curve().run_s(4) == 0.2
    assert again.parity() == {}


def test_a_changed_byte_is_found_and_named(artifact):
    artifact.model_path.write_bytes(b"weightz")
    with pytest.raises(ArtifactCorrupt, match=r"model\.onnx: expected SHA-256"):
        artifact.verify()


def test_a_missing_file_is_found_and_named(artifact):
    (artifact.path / PROFILE).unlink()
    with pytest.raises(ArtifactCorrupt, match=r"profile\.json"):
        artifact.verify()


def test_a_link_out_of_the_directory_is_refused(artifact, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "model.onnx"
    outside.write_bytes(b"weights")
    artifact.model_path.unlink()
    artifact.model_path.symlink_to(outside)
    with pytest.raises(ArtifactCorrupt, match="link"):
        artifact.verify()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_a_manifest_cannot_name_files_outside(artifact, name):
    raw = json.loads((artifact.path / MANIFEST).read_text())
    raw["files"][name] = "0" * 64
    (artifact.path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(ArtifactCorrupt, match="leaves"):
        Artifact.read(artifact.path)


@pytest.mark.parametrize("raw", ["{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 99}'])
def test_a_manifest_that_is_none_is_refused(artifact, raw):
    (artifact.path / MANIFEST).write_text(raw)
    with pytest.raises(ArtifactCorrupt):
        Artifact.read(artifact.path)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path):
    with pytest.raises(InvalidRequest, match=r"manifest\.json"):
        Artifact.read(tmp_path)


def test_another_manifest_is_another_artifact(artifact):
    raw = (artifact.path / MANIFEST).read_text()
    (artifact.path / MANIFEST).write_text(raw.replace("2026-01-01", "2026-01-02"))
    assert Artifact.read(artifact.path).digest != artifact.digest
