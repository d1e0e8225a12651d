from dataclasses import replace

import pytest

from cluster import changes, operations
from cluster.artifact import Manifest, hash_files, write_manifest
from cluster.artifacts_store import ArtifactStore
from cluster.documents import DeploySettings, VersionStatus, spec_of
from cluster.errors import Conflict, InvalidRequest, ModelNotFound, StaleRevision
from cluster.names import Target
from cluster.splits import TrafficSplit
from cluster.store.memory import MemoryStore
from cluster.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), True, 8)


class Raced(MemoryStore):
    """A store in which others commit just before the next swaps; `others` are called one per swap."""

    def __init__(self):
        super().__init__()
        self.others = []
        self.swaps = 0

    def swap(self, new, operation, by, reason=""):
        self.swaps += 1
        if self.others:
            self.others.pop(0)(super().swap)
        return super().swap(new, operation, by, reason)


@pytest.fixture
def store():
    return Raced()


@pytest.fixture
def artifacts(tmp_path):
    return ArtifactStore(str(tmp_path / "kept"), tmp_path / "cache")


@pytest.fixture
def make(tmp_path):
    def make(content):
        folder = tmp_path / content
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_text(content)
        files = hash_files(folder)
        return write_manifest(
            folder, Manifest("onnx", "fp32", "model.onnx", SIGNATURE, {}, {}, files, "now", ("cat", "dog"))
        )

    return make


@pytest.fixture
def published(store, artifacts, make):
    """Versions 1 to 3 of m, deployed and READY."""
    for content in ("a", "b", "c"):
        document = operations.publish(store, artifacts, "m", make(content), by="ann")
        operations.deploy(store, Target("m", changes.newest(document)), by="ann")
    ready(store)
    store.swaps = 0
    return store


def ready(store):
    document = store.read("m")
    store.report(
        "m", {v: VersionStatus(v, "READY", ready_once=True, digest=r.digest) for v, r in document.versions.items()}
    )


def split(text):
    return TrafficSplit.parse(text)


def test_publishing_makes_the_model_copies_the_artifact_and_tells_who(store, artifacts, make, tmp_path):
    artifact = make("a")
    document = operations.publish(store, artifacts, "m", artifact, by="ann", reason="first")
    record = document.versions["1"]
    assert changes.newest(document) == "1" and document.revision == 1
    assert (record.digest, record.by, record.class_labels, record.deploy) == (
        artifact.digest,
        "ann",
        ("cat", "dog"),
        None,
    )
    assert record.size_bytes == 1 + (artifact.path / "manifest.json").stat().st_size
    assert artifacts.fetch(record.uri, record.digest) == tmp_path / "kept" / artifact.digest
    entry = store.history("m")[0]
    assert (entry.operation, entry.by, entry.reason) == ("publish", "ann", "first")


def test_publishing_the_same_artifact_twice_needs_to_be_meant(store, artifacts, make):
    operations.publish(store, artifacts, "m", make("a"), by="ann")
    with pytest.raises(Conflict, match="version 1 already"):
        operations.publish(store, artifacts, "m", make("a"), by="ann")
    again = operations.publish(store, artifacts, "m", make("a"), by="ann", allow_same=True)
    assert changes.newest(again) == "2" and again.versions["1"].uri == again.versions["2"].uri


def test_a_refused_name_copies_nothing(store, artifacts, make, tmp_path):
    with pytest.raises(InvalidRequest, match="model"):
        operations.publish(store, artifacts, "../m", make("a"), by="ann")
    assert not (tmp_path / "kept").exists()


def test_deploying_without_a_version_takes_the_newest_and_keeps_what_was_set(published):
    document = operations.deploy(published, Target("m"), overrides={"max_replicas": 4}, by="ann")
    assert document.versions["3"].deploy == DeploySettings(max_replicas=4)
    document = operations.deploy(published, Target("m"), overrides={"num_cpus": 0.5}, by="ann")
    assert document.versions["3"].deploy == DeploySettings(max_replicas=4, num_cpus=0.5)
    document = operations.deploy(published, Target("m"), DeploySettings(), by="ann")
    assert document.versions["3"].deploy == DeploySettings()


def asking(artifact, **serving):
    """The artifact with settings that it asks to be served with."""
    return write_manifest(artifact.path, replace(artifact.manifest, extra={"serving": serving}))


def test_a_first_deploy_starts_from_what_the_artifact_asks_for_and_options_override_it(store, artifacts, make):
    operations.publish(store, artifacts, "m", asking(make("a"), num_cpus=2, max_batch_rows=16), by="ann")
    document = operations.deploy(store, Target("m"), overrides={"num_cpus": 1.0}, by="ann")
    assert document.versions["1"].deploy == DeploySettings(num_cpus=1.0, max_batch_rows=16)
    document = operations.deploy(store, Target("m"), overrides={"max_batch_rows": 0}, by="ann")
    assert operations.deploy(store, Target("m"), by="ann") == document  # what was set is not asked for again
    operations.undeploy(store, Target("m", "1"), force=True, by="ann")
    document = operations.deploy(store, Target("m"), by="ann")
    assert document.versions["1"].deploy == DeploySettings(num_cpus=2, max_batch_rows=16)


@pytest.mark.parametrize(
    ("serving", "complaint"),
    [
        ({"priority": 1000}, "got priority"),
        ({"max_batch": 8}, "got max_batch"),
        ({"max_batch_rows": 2.5}, "max_batch_rows"),
        ({"num_cpus": -1}, "num_cpus: expected 0 to 1024"),
        ({"num_cpus": "all"}, "num_cpus"),
    ],
)
def test_an_artifact_that_asks_for_what_it_may_not_is_not_published(
    store, artifacts, make, tmp_path, serving, complaint
):
    with pytest.raises(InvalidRequest, match=rf"manifest\.extra\.serving: .*{complaint}"):
        operations.publish(store, artifacts, "m", asking(make("a"), **serving), by="ann")
    assert not (tmp_path / "kept").exists() and store.models() == ()


def test_a_setting_that_does_not_exist_is_named(published):
    with pytest.raises(InvalidRequest, match="max_replica"):
        operations.deploy(published, Target("m"), overrides={"max_replica": 4}, by="ann")


def test_a_change_that_changes_nothing_is_not_written(published):
    before = published.read("m")
    assert operations.deploy(published, Target("m", "1"), by="ann") == before
    assert published.swaps == 0


def test_deploying_a_version_that_failed_tries_again_and_one_that_did_not_changes_nothing(published):
    digest = published.read("m").versions["1"].digest
    spec = spec_of(published.read("m").versions["1"])
    published.report("m", {"1": VersionStatus("1", "FAILED", "no memory", digest=digest)})
    again = operations.deploy(published, Target("m", "1"), by="ann").versions["1"]
    assert again.deploy == DeploySettings(attempt=1) and spec_of(again) != spec
    changed = operations.deploy(published, Target("m", "1"), overrides={"num_cpus": 2}, by="ann").versions["1"]
    assert changed.deploy == DeploySettings(num_cpus=2, attempt=1)
    ready(published)
    before = published.read("m")
    assert operations.deploy(published, Target("m", "1"), DeploySettings(num_cpus=2), by="ann") == before


def test_a_failure_of_another_artifact_is_no_reason_to_try_again(published):
    published.report("m", {"1": VersionStatus("1", "FAILED", digest="e" * 64)})
    before = published.read("m")
    assert operations.deploy(published, Target("m", "1"), by="ann") == before


def test_the_first_ready_version_takes_everything_and_later_ones_nothing(published):
    document = operations.take_first_traffic(published, Target("m", "1"), by="ann")
    assert (str(document.split), document.labels) == ("1=100", {"stable": "1"})
    assert operations.take_first_traffic(published, Target("m", "2"), by="ann") == document


def test_traffic_moves_only_to_what_the_controller_reported_ready(published):
    published.report("m", {})
    for act in (
        lambda: operations.split(published, "m", split("1=100"), by="ann"),
        lambda: operations.promote(published, Target("m", "1"), by="ann"),
        lambda: operations.set_label(published, Target("m", "1"), "canary", by="ann"),
        lambda: operations.take_first_traffic(published, Target("m", "1"), by="ann"),
    ):
        with pytest.raises(Conflict, match="wait until it is READY"):
            act()
    assert published.swaps == 0


def test_splits_promotions_and_rollbacks_follow_one_another(published):
    operations.promote(published, Target("m", "1"), by="ann")
    operations.split(published, "m", split("1=90,2=10"), by="ann")
    operations.split(published, "m", split("1=50,2=50"), by="ann")
    operations.promote(published, Target("m", "2"), by="ann")
    shown = []
    for _ in range(3):
        document = operations.rollback(published, "m", by="bob", reason="worse")
        shown.append((str(document.split), document.labels["stable"]))
    assert shown == [("1=50,2=50", "1"), ("1=90,2=10", "1"), ("1=100", "1")]
    assert [entry.operation for entry in published.history("m", 3)] == ["rollback"] * 3
    back = operations.rollback(published, "m", to_revision=published.read("m").revision - 3, by="bob")
    assert (str(back.split), back.labels["stable"]) == ("2=100", "2")


def test_a_label_names_the_version_of_a_command(published):
    operations.set_label(published, Target("m", "2"), "canary", by="ann")
    document = operations.promote(published, Target("m", label="canary"), by="ann")
    assert str(document.split) == "2=100"
    assert operations.version_of(document, Target("m", label="canary")) == "2"
    assert operations.version_of(document, Target("m")) == "3"
    document = operations.remove_label(published, "m", "canary", by="ann")
    assert document.labels == {"stable": "2"}


def test_commands_that_need_a_version_say_so(published):
    for act in (operations.promote, operations.undeploy, operations.unpublish, operations.scale):
        with pytest.raises(InvalidRequest, match=r"say which version.*m:1, m:2, m:3"):
            act(published, Target("m"), by="ann")


def test_scaling_and_undeploying_and_unpublishing(published):
    document = operations.scale(published, Target("m", "2"), min_replicas=2, max_replicas=3, by="ann")
    assert document.versions["2"].deploy == DeploySettings(2, 3)
    operations.undeploy(published, Target("m", "2"), by="ann")
    document = operations.unpublish(published, Target("m", "2"), by="ann")
    assert set(document.versions) == {"1", "3"}


def test_a_model_that_is_deployed_is_removed_only_by_force(published):
    with pytest.raises(Conflict, match="m:1, m:2, m:3"):
        operations.remove_model(published, "m", by="ann")
    operations.remove_model(published, "m", force=True, by="ann", reason="over")
    with pytest.raises(ModelNotFound):
        published.read("m")
    assert published.history("m")[0].reason == "over"


def test_an_expected_revision_that_is_not_the_current_one_changes_nothing(published, artifacts, make):
    target, old = Target("m", "1"), published.read("m").revision - 1
    for act in (
        lambda **also: operations.publish(published, artifacts, "m", make("d"), **also),
        lambda **also: operations.deploy(published, target, **also),
        lambda **also: operations.split(published, "m", split("1=100"), **also),
        lambda **also: operations.promote(published, target, **also),
        lambda **also: operations.rollback(published, "m", **also),
        lambda **also: operations.set_label(published, target, "x", **also),
        lambda **also: operations.remove_model(published, "m", force=True, **also),
    ):
        with pytest.raises(StaleRevision, match=f"made to revision {old}, but it is at revision {old + 1} now"):
            act(by="ann", expect_revision=old)
    assert published.read("m").revision == old + 1


def test_an_expected_revision_that_lost_the_race_is_not_tried_again(published):
    revision = published.read("m").revision
    published.others = [lambda swap: swap(published.read("m"), "touch", "bob")]
    with pytest.raises(StaleRevision, match="bob did 'touch'"):
        operations.split(published, "m", split("1=100"), by="ann", expect_revision=revision)
    assert published.swaps == 1


def test_a_lost_race_that_does_not_matter_is_run_again(published):
    def scaled(swap):
        swap(changes.scaled(published.read("m"), "3", None, 7), "scale", "bob")

    published.others = [scaled, scaled]
    document = operations.split(published, "m", split("1=100"), by="ann")
    assert str(document.split) == "1=100" and document.versions["3"].deploy.max_replicas == 7


def test_two_who_publish_at_once_get_two_versions(published, artifacts, make):
    def other(swap):
        document = published.read("m")
        swap(changes.published(document, replace(document.versions["1"], digest="e" * 64)), "publish", "bob")

    published.others = [other]
    document = operations.publish(published, artifacts, "m", make("d"), by="ann")
    assert document.versions["4"].digest == "e" * 64
    assert document.versions["5"].digest == make("d").digest


def test_two_who_move_traffic_at_once_one_is_told(published):
    operations.promote(published, Target("m", "1"), by="ann")
    published.others = [
        lambda swap: swap(replace(published.read("m"), split=split("1=50,3=50")), "split", "bob", "mine"),
    ]
    with pytest.raises(StaleRevision, match=r"bob did 'split' .*1=50,3=50 \(yours: 1=90,2=10\)"):
        operations.split(published, "m", split("1=90,2=10"), by="ann")
    assert str(published.read("m").split) == "1=50,3=50"


def test_a_race_that_is_lost_again_and_again_ends(published):
    published.others = [lambda swap: swap(replace(published.read("m"), next_version=50), "touch", "bob")] * 100
    with pytest.raises(StaleRevision):
        operations.deploy(published, Target("m", "1"), overrides={"max_replicas": 9}, by="ann")
    assert published.swaps == operations.ATTEMPTS


def test_nothing_is_made_of_a_model_that_is_not_there(store):
    for act in (
        lambda: operations.deploy(store, Target("nope"), by="ann"),
        lambda: operations.split(store, "nope", split("1=100"), by="ann"),
        lambda: operations.rollback(store, "nope", by="ann"),
        lambda: operations.remove_model(store, "nope", by="ann"),
    ):
        with pytest.raises(ModelNotFound, match="nope"):
            act()
    assert store.models() == ()
