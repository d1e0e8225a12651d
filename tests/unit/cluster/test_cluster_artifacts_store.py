import shutil
import uuid
from pathlib import Path

import fsspec
import pytest

from cluster import artifact as artifact_module
from cluster.artifact import Artifact, Manifest, hash_files, sha256_of, write_manifest
from cluster.artifacts_store import ArtifactStore, size_bytes
from cluster.errors import ArtifactCorrupt, InvalidRequest, OperatorError, StoreUnavailable
from cluster.storage import check_usable, local_path
from cluster.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), True, 8)


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "made"
    (folder / "data").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "data" / "part.bin").write_bytes(b"x" * 1000)
    manifest = Manifest("onnx", "fp32", "model.onnx", SIGNATURE, {}, {}, hash_files(folder), "2026-01-01")
    artifact = write_manifest(folder, manifest)
    (folder / "notes.txt").write_text("not part of it")
    return artifact


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    url = str(tmp_path / "kept") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"
    return ArtifactStore(url, tmp_path / "cache")


@pytest.fixture
def remote(tmp_path):
    return ArtifactStore(f"memory://{uuid.uuid4().hex}/deep", tmp_path / "cache")


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_was_put_is_fetched_whole_and_without_anything_else(store, artifact):
    uri = store.put(artifact)
    shutil.copytree(artifact.path, artifact.path.with_name("original"))
    shutil.rmtree(artifact.path)
    fetched = Artifact.read(store.fetch(uri, artifact.digest))
    fetched.verify()
    assert fetched.digest == artifact.digest
    assert set(contents(fetched.path)) == {"manifest.json", "model.onnx", "data/part.bin"}


def test_putting_the_same_artifact_again_changes_nothing(store, artifact):
    uri = store.put(artifact)
    assert store.put(artifact) == uri
    assert artifact.digest in uri


def test_a_local_artifact_is_used_in_place(tmp_path, artifact):
    store = ArtifactStore(str(tmp_path / "kept"), tmp_path / "cache")
    uri = store.put(artifact)
    assert str(store.fetch(uri, artifact.digest)) == uri
    assert not (tmp_path / "cache").exists()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [artifact.digest]


def test_a_relative_folder_gives_a_uri_that_means_the_same_everywhere(tmp_path, artifact, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = ArtifactStore("kept", tmp_path / "cache").put(artifact)
    monkeypatch.chdir("/")
    assert ArtifactStore("kept", tmp_path / "cache").fetch(uri, artifact.digest).is_dir()


def test_an_artifact_that_was_changed_is_not_put(store, artifact):
    artifact.model_path.write_bytes(b"weightz")
    with pytest.raises(ArtifactCorrupt, match=r"model\.onnx"):
        store.put(artifact)


def test_a_link_out_of_the_artifact_is_not_followed(store, artifact, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"weights")
    artifact.model_path.unlink()
    artifact.model_path.symlink_to(secret)
    with pytest.raises(ArtifactCorrupt, match="link"):
        store.put(artifact)


def test_a_damaged_local_copy_is_set_aside_and_replaced(tmp_path, artifact):
    store = ArtifactStore(str(tmp_path / "kept"), tmp_path / "cache")
    uri = store.put(artifact)
    (tmp_path / "kept" / artifact.digest / "model.onnx").write_bytes(b"?")
    assert store.put(artifact) == uri
    Artifact.read(store.fetch(uri, artifact.digest)).verify()


def test_a_damaged_cache_is_fetched_again(remote, artifact):
    uri = remote.put(artifact)
    (remote.fetch(uri, artifact.digest) / "model.onnx").write_bytes(b"?")
    Artifact.read(remote.fetch(uri, artifact.digest)).verify()


def test_a_cached_artifact_needs_no_network(remote, artifact):
    uri = remote.put(artifact)
    folder = remote.fetch(uri, artifact.digest)
    fsspec.filesystem("memory").rm(uri.removeprefix("memory://"), recursive=True)
    assert remote.fetch(uri, artifact.digest) == folder


@pytest.mark.parametrize(
    ("damage", "told"),
    [("model.onnx", "match"), ("manifest.json", "manifest.json|digest"), (None, "no artifact")],
)
def test_a_damaged_remote_artifact_is_refused_and_leaves_nothing(remote, artifact, tmp_path, damage, told):
    uri = remote.put(artifact)
    memory, root = fsspec.filesystem("memory"), uri.removeprefix("memory://")
    if damage:
        memory.pipe_file(f"{root}/{damage}", b'{"schema_version": 1}')
    else:
        memory.rm(root, recursive=True)
    with pytest.raises(ArtifactCorrupt, match=told):
        remote.fetch(uri, artifact.digest)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_missing_remotely_is_named(remote, artifact):
    uri = remote.put(artifact)
    fsspec.filesystem("memory").rm(uri.removeprefix("memory://") + "/data/part.bin")
    with pytest.raises(ArtifactCorrupt, match=r"data/part\.bin"):
        remote.fetch(uri, artifact.digest)
    remote.put(artifact)
    assert remote.fetch(uri, artifact.digest).is_dir()


def test_another_artifact_under_the_same_address_is_refused(remote, artifact):
    uri = remote.put(artifact)
    with pytest.raises(ArtifactCorrupt, match="expected digest 0000"):
        remote.fetch(uri, "0" * 64)


def test_a_digest_cannot_leave_the_cache(remote, artifact):
    with pytest.raises(InvalidRequest, match="digest"):
        remote.fetch(remote.put(artifact), "../../x")


def test_a_folder_that_is_gone_is_told(tmp_path):
    with pytest.raises(ArtifactCorrupt, match="no artifact is there"):
        ArtifactStore(str(tmp_path), tmp_path).fetch(str(tmp_path / "gone"), "0" * 64)


def test_an_unknown_kind_of_url_is_refused(tmp_path, artifact):
    with pytest.raises((InvalidRequest, OperatorError), match="nonsense"):
        ArtifactStore("nonsense://x", tmp_path).put(artifact)


def test_a_url_is_looked_at_before_anything_is_started(tmp_path):
    for usable in ("", str(tmp_path), "file:///a", "memory://a", "simplecache::memory://a"):
        check_usable(usable)
    for unknown in ("nonsense://x", "simplecache::nonsense://x"):
        with pytest.raises(InvalidRequest, match="nonsense"):
            check_usable(unknown)


def test_an_address_that_cannot_be_written_is_unavailable(tmp_path, artifact):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="file"):
        ArtifactStore(str(tmp_path / "file" / "kept"), tmp_path / "cache").put(artifact)


def test_size_counts_the_artifacts_own_files(artifact):
    assert size_bytes(artifact) == 1007 + (artifact.path / "manifest.json").stat().st_size


@pytest.mark.parametrize(("url", "local"), [("/a/b", "/a/b"), ("file:///a/b", "/a/b"), ("a", "a"), ("s3://a/b", None)])
def test_a_local_path_is_told_from_a_url(url, local):
    assert local_path(url) == (None if local is None else type(local_path("/"))(local))


def test_every_file_is_read_once_to_be_checked_wherever_the_artifact_lies(store, artifact, monkeypatch):
    uri = store.put(artifact)
    store.fetch(uri, artifact.digest)  # what comes from elsewhere is in the cache now
    checked: list[str] = []
    monkeypatch.setattr(artifact_module, "sha256_of", lambda file: checked.append(file.name) or sha256_of(file))
    assert store.verified(uri, artifact.digest).digest == artifact.digest
    assert sorted(checked) == ["model.onnx", "part.bin"]


def test_a_verified_artifact_is_the_one_that_was_asked_for_and_undamaged(tmp_path, artifact):
    store = ArtifactStore(str(tmp_path / "kept"), tmp_path / "cache")
    uri = store.put(artifact)
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.json: expected digest 0000"):
        store.verified(uri, "0" * 64)
    (Path(uri) / "model.onnx").write_bytes(b"?")
    with pytest.raises(ArtifactCorrupt, match=r"model\.onnx: expected SHA-256"):
        store.verified(uri, artifact.digest)
