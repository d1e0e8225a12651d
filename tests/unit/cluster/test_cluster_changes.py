from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import changes
from cluster.documents import AuditEntry, DeploySettings, ModelDocument, VersionRecord, VersionStatus
from cluster.errors import Conflict, InvalidRequest, ModelNotFound
from cluster.splits import TrafficSplit
from cluster.tensors import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), batched=True, max_rows=8
)


def record(version, **fields):
    made = VersionRecord(version, "/a", version * 64, SIGNATURE, "onnx", "fp32", 10, 1.0, deploy=DeploySettings())
    return replace(made, **fields)


def model(split=None, labels=None, versions="123", revision=7):
    return ModelDocument(
        "m",
        {version: record(version) for version in versions},
        TrafficSplit.parse(split, "salt") if split else None,
        labels or {},
        9,
        revision,
    )


def ready(*versions, state="READY"):
    return {version: VersionStatus(version, state, ready_once=True, digest=version * 64) for version in versions}


ALL = ready("1", "2", "3")


def to(document, text):
    return changes.split_to(document, TrafficSplit.parse(text), ALL)


def test_a_published_version_takes_the_next_number_and_moves_nothing():
    document = changes.published(model("1=100"), record("1", digest="e" * 64, deploy=None))
    assert (document.versions["9"].digest, document.next_version) == ("e" * 64, 10)
    assert document.split == model("1=100").split
    assert changes.newest(document) == "9"


def test_the_newest_version_is_the_greatest_number_not_the_last_in_the_alphabet():
    document = replace(model(), versions={"9": record("9"), "10": record("10")})
    assert changes.newest(document) == "10"
    with pytest.raises(Conflict, match="prism publish m"):
        changes.newest(ModelDocument("m"))


def test_the_same_artifact_is_told_from_a_new_one():
    with pytest.raises(Conflict, match="version 2 already"):
        changes.check_new(model(), "2" * 64)
    changes.check_new(model(), "9" * 64)


def test_a_version_in_use_cannot_be_unpublished():
    with pytest.raises(Conflict, match="undeploy it first"):
        changes.unpublished(model(), "2")
    idle = model(labels={"old": "2"}).with_record(record("2", deploy=None))
    with pytest.raises(Conflict, match="label 'old'"):
        changes.unpublished(idle, "2")
    gone = changes.unpublished(replace(idle, labels={}), "2")
    assert set(gone.versions) == {"1", "3"} and gone.next_version == 9


def test_a_version_with_traffic_or_a_label_is_not_undeployed():
    with pytest.raises(Conflict, match=r"takes 12\.5 % of the traffic"):
        changes.undeployed(model("1=87.5,2=12.5"), "2")
    with pytest.raises(Conflict, match="label 'old'"):
        changes.undeployed(model("1=100", {"old": "2"}), "2")
    assert changes.undeployed(model("1=100"), "2").versions["2"].deploy is None


def test_forced_undeployment_divides_traffic_in_proportion_and_drops_its_labels():
    document = changes.undeployed(model("1=60,2=10,3=30", {"canary": "2", "stable": "1"}), "2", force=True)
    assert str(document.split) == "1=66.67,3=33.33"
    assert document.split.salt == "salt"
    assert document.labels == {"stable": "1"}


def test_forced_undeployment_of_the_only_version_leaves_no_traffic():
    assert changes.undeployed(model("2=100"), "2", force=True).split is None


def test_what_is_not_deployed_cannot_be_undeployed_or_scaled():
    idle = model().with_record(record("2", deploy=None))
    for act in (lambda: changes.undeployed(idle, "2"), lambda: changes.scaled(idle, "2", 1, 2)):
        with pytest.raises(Conflict, match="m:2 is not deployed"):
            act()


def test_scaling_changes_the_bounds_and_nothing_else():
    deployed = changes.deployed(model(), "2", DeploySettings(1, 4, num_cpus=0.5))
    assert changes.scaled(deployed, "2", 2, None).versions["2"].deploy == DeploySettings(2, 4, num_cpus=0.5)
    assert changes.scaled(deployed, "2", None, 8).versions["2"].deploy == DeploySettings(1, 8, num_cpus=0.5)
    with pytest.raises(InvalidRequest, match="min_replicas"):
        changes.scaled(deployed, "2", 5, None)


def test_a_version_that_is_not_there_is_named_with_those_that_are():
    for act in (changes.unpublished, changes.undeployed):
        with pytest.raises(ModelNotFound, match="there are: 1, 2, 3"):
            act(model(), "8")
    with pytest.raises(ModelNotFound, match="no version 8"):
        to(model(), "8=100")


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (None, "wait until it is READY"),
        (VersionStatus("2", "LOADING", digest="2" * 64), "it is LOADING"),
        (VersionStatus("2", "FAILED", "out of memory", digest="2" * 64), "FAILED: out of memory"),
        (VersionStatus("2", "FAILED", "crashes now", ready_once=True, digest="2" * 64), "FAILED: crashes now"),
        (VersionStatus("2", "READY", ready_once=True, digest="9" * 64), "nothing is known of it yet"),
        (VersionStatus("2", "DRAINING", ready_once=True, digest="2" * 64), "it is DRAINING"),
        (VersionStatus("2", "READY", ready_once=False, digest="2" * 64), "wait until it is READY"),
    ],
)
def test_traffic_and_labels_move_only_to_a_ready_version(status, told):
    statuses = ready("1") | ({"2": status} if status else {})
    for act in (
        lambda: changes.split_to(model("1=100"), TrafficSplit.parse("1=99,2=1"), statuses),
        lambda: changes.promoted(model("1=100"), "2", statuses),
        lambda: changes.labelled(model("1=100"), "canary", "2", statuses),
    ):
        with pytest.raises(Conflict, match=told) as error:
            act()
        assert error.value.message.startswith("m:2 cannot ")


@pytest.mark.parametrize("state", ["READY", "DEGRADED", "ASLEEP"])
def test_a_version_that_was_ready_once_may_take_traffic_while_it_is_deployed(state):
    moved = changes.split_to(model("1=100"), TrafficSplit.parse("1=50,2=50"), ready("2", state=state))
    assert str(moved.split) == "1=50,2=50"


def test_a_version_that_is_not_deployed_takes_no_traffic_even_if_it_was_ready():
    idle = model("1=100").with_record(record("2", deploy=None))
    with pytest.raises(Conflict, match=r"not deployed \(prism deploy m:2\)"):
        to(idle, "1=50,2=50")


def test_traffic_may_leave_a_version_that_has_failed():
    moved = changes.split_to(model("1=50,2=50"), TrafficSplit.parse("1=90,2=10"), ready("1"))
    assert str(moved.split) == "1=90,2=10"


def test_the_salt_stays_while_traffic_is_divided_and_changes_with_a_new_rollout():
    first = to(model("1=100"), "1=90,2=10")
    assert first.split.salt == "m/7"
    assert to(replace(first, revision=8), "1=50,2=50").split.salt == "m/7"
    back = to(replace(first, revision=9), "1=100")
    assert to(replace(back, revision=10), "1=90,2=10").split.salt == "m/10"
    assert changes.split_to(first, TrafficSplit.parse("1=50,2=50", "mine"), ALL).split.salt == "mine"


def test_versions_keep_their_order_however_the_split_is_written():
    ramped = to(to(model("1=100"), "1=90,2=10"), "2=20,1=80")
    assert str(ramped.split) == "1=80,2=20"
    assert str(to(ramped, "3=5,2=15,1=80").split) == "1=80,2=15,3=5"


def test_versions_without_a_share_are_left_out():
    assert str(to(model("1=100"), "1=100,2=0").split) == "1=100"


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 2000), st.booleans())
def test_a_key_that_met_the_growing_version_keeps_meeting_it(low, high, key, swapped):
    low, high = sorted((low, high))
    text = "{b},{a}" if swapped else "{a},{b}"
    small = to(model("1=100"), f"1={100 - low},2={low}")
    large = to(small, text.format(a=f"1={100 - high}", b=f"2={high}"))
    if small.split.pick(str(key)) == "2":
        assert large.split.pick(str(key)) == "2"


def test_promotion_moves_everything_and_the_label_stable():
    document = changes.promoted(model("1=50,2=50", {"stable": "1", "canary": "2"}), "2", ALL)
    assert str(document.split) == "2=100"
    assert document.labels == {"stable": "2", "canary": "2"}
    assert changes.promoted(document, "2", ALL) == document


def test_labels_are_set_moved_and_removed():
    document = changes.labelled(model(), "canary", "2", ALL)
    assert changes.labelled(document, "canary", "3", ALL).labels == {"canary": "3"}
    assert changes.unlabelled(document, "canary").labels == {}
    with pytest.raises(Conflict, match="no label 'old'"):
        changes.unlabelled(document, "old")
    with pytest.raises(InvalidRequest, match="label"):
        changes.labelled(document, "Bad Label", "2", ALL)


class Story:
    """A model and its history, as operations would write it."""

    def __init__(self):
        self.document = model(revision=1)
        self.entries = [self._entry("publish")]

    def _entry(self, operation):
        return AuditEntry(self.document.revision, operation, "ann", 0.0, "", self.document)

    def does(self, operation, document):
        self.document = replace(document, revision=self.document.revision + 1)
        self.entries.insert(0, self._entry(operation))
        return self

    def splits(self, text):
        return self.does("split", to(self.document, text))

    def promotes(self, version):
        return self.does("promote", changes.promoted(self.document, version, ALL))

    def labels(self, label, version):
        return self.does("label", changes.labelled(self.document, label, version, ALL))

    def deploys(self, version):
        return self.does("deploy", changes.deployed(self.document, version, DeploySettings(1, 5)))

    def rolls_back(self, to_revision=None, statuses=ALL):
        return self.does("rollback", changes.rolled_back(self.document, self.entries, statuses, to_revision))

    @property
    def shown(self):
        return str(self.document.split), self.document.labels.get("stable")


def test_rollback_undoes_the_latest_step():
    story = Story().promotes("1").splits("1=90,2=10").splits("1=50,2=50").promotes("2")
    assert story.shown == ("2=100", "2")
    assert story.rolls_back().shown == ("1=50,2=50", "1")


def test_one_rollback_after_another_goes_further_back():
    story = Story().promotes("1").splits("1=90,2=10").splits("1=50,2=50").promotes("2")
    assert story.rolls_back().shown == ("1=50,2=50", "1")
    assert story.rolls_back().shown == ("1=90,2=10", "1")
    assert story.rolls_back().shown == ("1=100", "1")
    with pytest.raises(Conflict, match="no earlier traffic"):
        story.rolls_back()


def test_after_a_rollback_a_new_step_is_undone_first():
    story = Story().promotes("1").promotes("2").rolls_back().promotes("3")
    assert story.rolls_back().shown == ("1=100", "1")
    with pytest.raises(Conflict, match="no earlier traffic"):
        story.rolls_back()


def test_rollback_keeps_the_salt_so_that_keys_return_to_where_they_were():
    story = Story().promotes("1").splits("1=50,2=50")
    before = story.document.split
    assert story.promotes("2").rolls_back().document.split == before


def test_what_is_no_step_of_traffic_is_not_undone():
    story = Story().promotes("1").promotes("2").deploys("3").labels("canary", "3")
    story.rolls_back()
    assert story.shown == ("1=100", "1")
    assert story.document.labels["canary"] == "3"
    assert story.document.versions["3"].deploy == DeploySettings(1, 5)


def test_a_label_stable_that_did_not_exist_before_is_gone_again():
    assert Story().splits("1=100").promotes("2").rolls_back().shown == ("1=100", None)


def test_rollback_to_a_revision_restores_it_and_is_a_step_of_undoing():
    story = Story().promotes("1").promotes("2").promotes("3")
    assert story.rolls_back(to_revision=3).shown == ("2=100", "2")
    assert story.rolls_back().shown == ("1=100", "1")


def test_going_to_a_revision_that_was_undone_can_be_undone_itself():
    story = Story().promotes("1").promotes("2").rolls_back()
    assert story.rolls_back(to_revision=3).shown == ("2=100", "2")
    assert story.rolls_back().shown == ("1=100", "1")


def test_a_revision_that_is_not_in_the_history_is_refused_with_those_that_are():
    with pytest.raises(InvalidRequest, match=r"\(1 to 2\), got 9"):
        Story().promotes("1").rolls_back(to_revision=9)


def test_a_revision_without_traffic_is_nothing_to_go_back_to():
    with pytest.raises(Conflict, match="no version took traffic yet at revision 1"):
        Story().promotes("1").rolls_back(to_revision=1)
    with pytest.raises(Conflict, match="no earlier traffic"):
        Story().promotes("1").rolls_back()
    with pytest.raises(Conflict, match="no earlier traffic"):
        Story().rolls_back()


def test_rollback_to_a_version_no_longer_deployed_says_what_can_be_done():
    story = Story().promotes("1").promotes("2")
    story.does("undeploy", changes.undeployed(story.document, "1"))
    with pytest.raises(Conflict, match=r"version 1 is no longer deployed; deploy it first \(prism deploy m:1\)"):
        story.rolls_back()


def test_rollback_to_a_version_no_longer_published_is_refused():
    story = Story().promotes("1").promotes("2")
    story.does("undeploy", changes.undeployed(story.document, "1"))
    story.does("unpublish", changes.unpublished(story.document, "1"))
    with pytest.raises(Conflict, match="version 1 is no longer published"):
        story.rolls_back()


def test_rollback_moves_traffic_only_to_ready_versions():
    story = Story().promotes("1").promotes("2")
    with pytest.raises(Conflict, match="m:1 cannot take traffic: it is LOADING"):
        story.rolls_back(statuses={"1": VersionStatus("1", "LOADING", digest="1" * 64)})
    assert story.rolls_back(statuses=ready("1", state="ASLEEP")).shown == ("1=100", "1")


def test_what_was_before_the_model_was_removed_is_not_gone_back_to():
    story = Story().promotes("1").promotes("2")
    story.entries.insert(0, AuditEntry(4, "remove", "ann", 0.0, "", story.document))
    story.document = model(revision=4)
    story.does("publish", model()).promotes("3")
    with pytest.raises(Conflict, match="no earlier traffic"):
        story.rolls_back()
    with pytest.raises(InvalidRequest, match=r"\(5 to 6\), got 2"):
        story.rolls_back(to_revision=2)


@given(st.lists(st.sampled_from(["1", "2", "3", "back"]), max_size=12))
def test_rollback_is_undo(steps):
    story, undo = Story(), []
    for step in steps:
        if step != "back":
            if story.shown != (f"{step}=100", step):
                undo.append(story.shown)
                story.promotes(step)
        elif len(undo) > 1:
            assert story.rolls_back().shown == undo.pop()
        else:
            with pytest.raises(Conflict):
                story.rolls_back()


def test_a_provider_is_chosen_for_onnx_versions_only():
    wanted = DeploySettings(provider="tensorrt")
    assert changes.deployed(model(), "1", wanted).versions["1"].deploy == wanted
    engines = model().with_record(record("1", format="tensorrt"))
    with pytest.raises(InvalidRequest, match=r"deploy\.provider: expected auto for a version of format tensorrt"):
        changes.deployed(engines, "1", wanted)
