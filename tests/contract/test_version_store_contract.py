"""What every version store does, run over memory and over a real server."""

import itertools
import threading
import time
from dataclasses import replace

import pytest

from cluster.costs import CostCurve
from cluster.documents import DeploySettings, ModelDocument, VersionRecord, VersionStatus
from cluster.errors import InvalidRequest, ModelNotFound, StaleRevision
from cluster.nodes import DrainRequest, NodeReport, NodeReports
from cluster.splits import TrafficSplit
from cluster.store.commits import MAX_TEXT
from cluster.store.memory import MemoryStore
from cluster.store.redis import RedisStore
from cluster.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), True, 8)
HOSTILE = ["", "..", "a/../b", "a b", "{x}", "m}:{n", "*", "prism:epoch", "m\n", "é", "a" * 101, "\x00"]
_NUMBER = itertools.count()


@pytest.fixture(params=["memory", "redis"])
def store(request):
    made = MemoryStore() if request.param == "memory" else RedisStore(request.getfixturevalue("store_server").url)
    yield made
    made.close()


@pytest.fixture
def model():
    return f"m-{next(_NUMBER)}"


def record(version="1", labels=()):
    return VersionRecord(
        version, "/a", "d" * 64, SIGNATURE, "onnx", "fp32", 10, 1.5, "ann", CostCurve.of({1: 0.1}), class_labels=labels,
        deploy=DeploySettings(max_replicas=3),
    )  # fmt: skip


def document(model, **changes):
    return ModelDocument(
        model, {"1": record(), "2": record("2")}, TrafficSplit.parse("1=90,2=10", "salt"), {"stable": "1"}, 3, **changes
    )


def test_what_was_swapped_in_reads_back_with_revision_and_epoch(store, model):
    written = store.swap(document(model), "publish", "ann", "because")
    assert written == document(model, revision=1, epoch=store.epoch())
    assert store.read(model) == written
    assert store.revisions()[model] == 1
    assert model in store.models()


def test_the_epoch_stays(store):
    assert store.epoch() == store.epoch() != ""


def test_models_are_sorted(store, model):
    for name in (f"{model}.b", f"{model}.a", f"{model}.C"):
        store.swap(ModelDocument(name), "publish", "ann")
    ours = [name for name in store.models() if name.startswith(f"{model}.")]
    assert ours == sorted(ours) and len(ours) == 3


def test_a_model_that_is_not_there_is_not_found(store, model):
    for ask in (store.read, store.history):
        with pytest.raises(ModelNotFound, match=model):
            ask(model)
    assert store.statuses(model) == {}
    assert model not in store.revisions()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused_everywhere(store, name):
    for ask in (store.read, store.history, store.statuses, lambda name: store.report(name, {})):
        with pytest.raises(InvalidRequest, match="model"):
            ask(name)


def test_each_commit_takes_the_next_revision(store, model):
    held = store.swap(document(model), "publish", "ann")
    for revision in range(2, 6):
        held = store.swap(held, "deploy", "ann")
        assert held.revision == revision


def test_a_stale_revision_writes_nothing_and_says_who_was_faster(store, model):
    first = store.swap(document(model), "publish", "ann")
    current = store.swap(replace(first, split=TrafficSplit.parse("1=50,2=50")), "split", "bob", "half")
    with pytest.raises(StaleRevision) as error:
        store.swap(replace(first, split=TrafficSplit.parse("1=80,2=20")), "split", "cid")
    for told in (model, "revision 1", "revision 2", "bob", "'split'", "1=50,2=50", "1=80,2=20", "nothing was written"):
        assert told in error.value.message
    assert store.read(model) == current
    assert [entry.revision for entry in store.history(model)] == [2, 1]


def test_a_model_that_exists_cannot_be_made_again(store, model):
    store.swap(document(model), "publish", "ann")
    with pytest.raises(StaleRevision, match="no such model yet"):
        store.swap(document(model), "publish", "bob")


def test_a_model_that_never_was_cannot_be_changed_or_removed(store, model):
    for change in (
        lambda: store.swap(document(model, revision=3), "split", "ann"),
        lambda: store.remove(document(model, revision=3), "ann"),
        lambda: store.remove(document(model), "ann"),
    ):
        with pytest.raises(StaleRevision, match="no such model now"):
            change()
    assert model not in store.models()


def test_a_document_of_another_data_set_is_stale(store, model):
    held = store.swap(document(model), "publish", "ann")
    with pytest.raises(StaleRevision):
        store.swap(replace(held, epoch="0" * 32), "split", "ann")
    assert store.read(model) == held


def test_a_removed_model_is_gone_and_its_history_stays(store, model):
    held = store.swap(document(model), "publish", "ann")
    store.report(model, {"1": VersionStatus("1", "READY")})
    store.remove(held, "bob", "enough")
    with pytest.raises(ModelNotFound):
        store.read(model)
    assert model not in store.models()
    assert store.statuses(model) == {}
    newest = store.history(model)[0]
    assert (newest.revision, newest.operation, newest.by, newest.reason) == (2, "remove", "bob", "enough")
    assert newest.document.split == held.split


def test_a_model_made_anew_goes_on_counting_revisions(store, model):
    store.remove(store.swap(document(model), "publish", "ann"), "ann")
    again = store.swap(document(model), "publish", "ann")
    assert again.revision == 3
    assert store.read(model) == again
    assert [entry.revision for entry in store.history(model)] == [3, 2, 1]


def test_a_document_from_before_a_removal_cannot_come_back(store, model):
    held = store.swap(document(model), "publish", "ann")
    store.remove(held, "ann")
    with pytest.raises(StaleRevision, match="it was removed"):
        store.swap(held, "split", "bob")
    with pytest.raises(StaleRevision, match="it was removed"):
        store.remove(held, "bob")
    store.swap(document(model), "publish", "ann")
    with pytest.raises(StaleRevision):
        store.swap(held, "split", "bob")


def test_history_is_newest_first_bounded_and_whole(store, model):
    before_s = time.time()
    held = store.swap(document(model), "publish", "ann", "first")
    for i in range(5):
        held = store.swap(replace(held, next_version=10 + i), f"step {i}", "bob", f"why {i}")
    history = store.history(model)
    assert [entry.revision for entry in history] == [6, 5, 4, 3, 2, 1]
    assert history[0].document == held and history[-1].document == document(model, revision=1, epoch=store.epoch())
    assert (history[1].operation, history[1].by, history[1].reason) == ("step 3", "bob", "why 3")
    assert all(before_s - 5 < entry.at_s < time.time() + 5 for entry in history)
    assert store.history(model, 2) == history[:2]


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_history_without_bound_is_refused(store, model, limit):
    with pytest.raises(InvalidRequest, match="limit"):
        store.history(model, limit)


def test_a_text_that_is_too_long_is_refused_by_name(store, model):
    for texts, named in (
        (("x" * (MAX_TEXT + 1), "ann", ""), "operation"),
        (("", "ann", ""), "operation"),
        (("x", "a" * (MAX_TEXT + 1), ""), "by"),
        (("x", "ann", "r" * (MAX_TEXT + 1)), "reason"),
        (("x", "ann", "\udc80"), "reason"),
    ):
        with pytest.raises(InvalidRequest, match=named):
            store.swap(document(model), *texts)
    assert model not in store.models()


def test_texts_are_kept_as_they_are(store, model):
    hostile = "ünï {x} \x00 \r\n *3 ' \" ]] 😀"
    store.swap(document(model), hostile, hostile, hostile)
    newest = store.history(model)[0]
    assert (newest.operation, newest.by, newest.reason) == (hostile, hostile, hostile)


def test_a_document_that_is_too_large_is_refused(store, model):
    large = replace(document(model), versions={"1": record(labels=("x" * 1000,) * 1100), "2": record("2")})
    with pytest.raises(InvalidRequest, match="1048576"):
        store.swap(large, "publish", "ann")
    assert model not in store.models()


def test_a_document_of_another_schema_is_not_written(store, model):
    with pytest.raises(InvalidRequest, match="schema_version: expected 1, got 2"):
        store.swap(replace(document(model), schema_version=2), "publish", "ann")
    assert model not in store.models()


def test_what_a_caller_does_to_a_document_stays_with_the_caller(store, model):
    mine = document(model)
    written = store.swap(mine, "publish", "ann")
    for held in (mine, written, store.read(model)):
        held.labels["evil"] = "9"
        held.versions.clear()
    assert store.read(model) == document(model, revision=1, epoch=store.epoch())


def test_a_report_replaces_the_one_before(store, model):
    store.swap(document(model), "publish", "ann")
    store.report(
        model, {"1": VersionStatus("1", "READY", "", 1, 2, True, "d", "spec", 3.5), "2": VersionStatus("2", "FAILED")}
    )
    store.report(model, {"2": VersionStatus("2", "LOADING", "warming up")})
    assert store.statuses(model) == {"2": VersionStatus("2", "LOADING", "warming up")}
    store.report(model, {})
    assert store.statuses(model) == {}


def test_a_report_takes_no_revision_and_makes_no_model(store, model):
    store.report(model, {"1": VersionStatus("1", "READY")})
    assert store.statuses(model) == {}
    held = store.swap(document(model), "publish", "ann")
    store.report(model, {"1": VersionStatus("1", "READY")})
    assert store.read(model) == held


def test_writers_at_the_same_time_lose_nothing(store, model):
    store.swap(ModelDocument(model), "publish", "ann")
    writers, commits = 4, 15
    wrote: list[int] = []

    def write(name):
        for _ in range(commits):
            while True:
                held = store.read(model)
                try:
                    new = store.swap(replace(held, next_version=held.next_version + 1), "count", name)
                except StaleRevision:
                    continue
                wrote.append(new.revision)
                break

    threads = [threading.Thread(target=write, args=(f"writer {i}",)) for i in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    total = writers * commits
    assert sorted(wrote) == list(range(2, total + 2))
    held = store.read(model)
    assert (held.revision, held.next_version) == (total + 1, total + 1)
    history = store.history(model, 1000)
    assert [entry.revision for entry in history] == list(range(total + 1, 0, -1))
    assert [entry.document.next_version for entry in history] == list(range(total + 1, 0, -1))


def test_of_many_who_make_the_same_model_one_does(store, model):
    barrier = threading.Barrier(6)
    made: list[str] = []

    def make(name):
        barrier.wait()
        try:
            store.swap(document(model), "publish", name)
            made.append(name)
        except StaleRevision:
            pass

    threads = [threading.Thread(target=make, args=(f"writer {i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1
    assert [entry.by for entry in store.history(model)] == made


def test_a_revision_may_be_asked_to_be_above_a_number(store, model):
    first = store.swap(document(model), "restore", "ann", above=7)
    assert first == document(model, revision=8, epoch=store.epoch())
    assert store.swap(first, "restore", "ann", above=3).revision == 9
    assert [entry.revision for entry in store.history(model)] == [9, 8]
    assert store.revisions()[model] == 9


def test_every_sanction_has_a_greater_mark_and_wakes_who_waits(store):
    before = store.sanctioned()
    store.wait(0.5)
    first = store.sanction()
    assert store.wait(5) is True
    second = store.sanction()
    assert before < first < second == store.sanctioned()
    assert abs(first / 1e6 - time.time()) < 5


def test_wait_returns_false_when_nothing_happens(store):
    store.wait(0.5)  # whatever happened before
    began_s = time.monotonic()
    assert store.wait(0.2) is False
    assert 0.15 < time.monotonic() - began_s < 1.5


def test_a_commit_wakes_everybody_who_waits(store, model):
    store.wait(0.5)
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(store.wait(10))) for _ in range(3)]
    for thread in threads:
        thread.start()
    until_s = time.monotonic() + 8
    while len(woken) < 3 and time.monotonic() < until_s:
        held = document(model) if model not in store.models() else store.read(model)
        store.swap(held, "publish", "ann")  # again, in case a thread was not waiting yet
        for thread in threads:
            thread.join(0.05)
    assert woken == [True, True, True]


def test_a_commit_between_two_waits_is_not_missed(store, model):
    store.wait(0.5)
    held = store.swap(document(model), "publish", "ann")
    assert store.wait(5) is True
    store.remove(held, "ann")
    assert store.wait(5) is True


def test_close_may_be_called_twice(store):
    store.close()
    store.close()


def test_the_nodes_read_back_as_they_were_reported_last(store):
    node = NodeReport(
        "a" * 56, "10.0.0.1", "host", True, "DRAINING", 8000, "RUNNING", {"m:1": 2}, {"CPU": 4.0}, {"CPU": 1.5}
    )
    store.nodes.report(NodeReports((node, NodeReport("b" * 56, "10.0.0.2", "other")), 12.5))
    assert store.nodes.reports() == NodeReports((node, NodeReport("b" * 56, "10.0.0.2", "other")), 12.5)
    store.nodes.report(NodeReports())
    assert store.nodes.reports() == NodeReports()


def test_a_wish_to_drain_is_kept_as_it_was_first_said_wakes_and_can_be_forgotten(store):
    store.wait(0.5)
    store.nodes.drain("a", DrainRequest("ann", 1.0))
    assert store.wait(5.0)
    store.nodes.drain("a", DrainRequest("bob", 2.0))
    store.nodes.drain("b", DrainRequest("bob", 3.0))
    assert store.nodes.drains() == {"a": DrainRequest("ann", 1.0), "b": DrainRequest("bob", 3.0)}
    store.nodes.forget("a")
    store.nodes.forget("unknown")
    assert set(store.nodes.drains()) == {"b"}
    store.nodes.forget("b")
