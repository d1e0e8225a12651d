"""What machines made of an artifact goes when the last version with it goes."""

import pytest

from cluster import operations
from cluster.artifact import Manifest, hash_files, write_manifest
from cluster.artifacts_store import ArtifactStore
from cluster.names import Target
from cluster.store.memory import MemoryStore
from cluster.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), True, 8)
KEY = {"gpu": "Tesla T4"}


@pytest.fixture
def artifacts(tmp_path):
    return ArtifactStore(str(tmp_path / "kept"), tmp_path / "cache")


@pytest.fixture
def published(tmp_path, artifacts):
    """Versions 1 and 2 of m and version 1 of other: artifacts a, b and b, each with an engine."""
    store = MemoryStore()
    for model, content in (("m", "a"), ("m", "b"), ("other", "b")):
        folder = tmp_path / content
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_text(content)
        manifest = Manifest("tensorrt", "fp32", "model.onnx", SIGNATURE, {}, {}, hash_files(folder), "now")
        (folder / "manifest.json").unlink(missing_ok=True)
        artifact = write_manifest(folder, manifest)
        operations.publish(store, artifacts, model, artifact, by="ann")
        made = tmp_path / "made"
        made.mkdir(exist_ok=True)
        (made / "model.engine").write_text(content)
        artifacts.derived.put(artifact.digest, KEY, made)
    return store


def kept(published, artifacts, model, version):
    return artifacts.derived.fetch(published.read(model).record(version).digest, KEY)


def test_unpublishing_removes_what_was_made_of_the_artifact(published, artifacts):
    digest = published.read("m").record("1").digest
    operations.unpublish(published, Target("m", "1"), by="ann", derived=artifacts.derived)
    assert artifacts.derived.fetch(digest, KEY) is None
    assert kept(published, artifacts, "m", "2") is not None


def test_what_another_version_still_has_stays(published, artifacts):
    operations.unpublish(published, Target("m", "2"), by="ann", derived=artifacts.derived)
    assert kept(published, artifacts, "other", "1") is not None
    digest = published.read("other").record("1").digest
    operations.remove_model(published, "other", by="ann", derived=artifacts.derived)
    assert artifacts.derived.fetch(digest, KEY) is None


def test_removing_a_model_removes_what_was_made_of_all_its_versions(published, artifacts):
    digests = [record.digest for record in published.read("m").versions.values()]
    operations.remove_model(published, "other", by="ann", derived=artifacts.derived)
    operations.remove_model(published, "m", by="ann", derived=artifacts.derived)
    assert [artifacts.derived.fetch(digest, KEY) for digest in digests] == [None, None]
