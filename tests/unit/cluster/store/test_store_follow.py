import zlib
from dataclasses import replace

import pytest

from cluster.documents import ModelDocument, encode
from cluster.errors import StoreUnavailable
from cluster.store.follow import Changes, Follower, regression
from cluster.store.kept import Kept, read_kept
from cluster.store.memory import MemoryStore


class Breakable:
    """A memory store that may be down, and may be exchanged for another one, as a server that lost its data is."""

    def __init__(self):
        self.real = MemoryStore()
        self.down = False
        self.reads = []

    def __getattr__(self, name):
        if self.down:
            raise StoreUnavailable("no answer")
        return getattr(self.real, name)

    def read(self, model):
        self.reads.append(model)
        return self.__getattr__("read")(model)


@pytest.fixture
def store():
    return Breakable()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / "routes.json"


def put(store, name, **changes):
    return store.real.swap(replace(ModelDocument(name), **changes), "publish", "ann")


def push(store, name):
    return store.real.swap(store.real.read(name), "step", "ann")


def older(store):
    """The store as it was before anything, under the same epoch: what an old backup looks like."""
    back = MemoryStore()
    back._epoch = store.real._epoch
    store.real = back


def test_the_first_poll_of_a_fresh_reader_adopts_what_is_there(store, file):
    first = put(store, "a")
    follower = Follower(store, file)
    assert follower.documents == {} and not follower.up
    changes = follower.poll()
    assert changes.changed == ("a",) and changes.removed == () and changes
    assert follower.documents == {"a": first}
    assert follower.up and follower.regressed == "" and follower.epoch == store.real.epoch()


def test_a_poll_without_news_reads_no_document_and_changes_nothing(store, file):
    put(store, "a")
    follower = Follower(store, file)
    follower.poll()
    before, written = follower.documents, file.stat().st_mtime_ns
    store.reads.clear()
    assert not follower.poll()
    assert store.reads == []
    assert follower.documents is before
    assert file.stat().st_mtime_ns == written


def test_only_models_whose_revision_changed_are_read(store, file):
    put(store, "a")
    put(store, "b")
    follower = Follower(store, file)
    follower.poll()
    store.reads.clear()
    newest = push(store, "b")
    assert follower.poll().changed == ("b",)
    assert store.reads == ["b"]
    assert follower.documents["b"] == newest


def test_a_removed_model_goes_and_the_others_stay(store, file):
    put(store, "a")
    store_b = put(store, "b")
    follower = Follower(store, file)
    follower.poll()
    store.real.remove(store_b, "ann")
    changes = follower.poll()
    assert (changes.changed, changes.removed) == ((), ("b",))
    assert set(follower.documents) == {"a"}
    assert set(Follower(store, file).poll().changed) == {"a"}


def test_a_model_removed_and_made_anew_between_two_polls_is_a_change(store, file):
    follower = Follower(store, file)
    store.real.remove(put(store, "a"), "ann")
    follower.poll()
    again = put(store, "a")
    store.real.remove(again, "ann")
    latest = put(store, "a")
    assert follower.poll().changed == ("a",)
    assert follower.documents == {"a": latest}


def test_documents_that_were_handed_out_never_change(store, file):
    put(store, "a")
    follower = Follower(store, file)
    follower.poll()
    held = follower.documents
    push(store, "a")
    put(store, "b")
    follower.poll()
    assert held["a"].revision == 1 and "b" not in held
    with pytest.raises(TypeError):
        held["c"] = ModelDocument("c")


def test_without_the_store_the_last_good_state_stays_in_force(store, file):
    put(store, "a")
    follower = Follower(store, file)
    follower.poll()
    store.down = True
    assert not follower.poll()
    assert set(follower.documents) == {"a"}
    assert not follower.up and follower.regressed == ""
    store.down = False
    push(store, "a")
    assert follower.poll().changed == ("a",)
    assert follower.up


def test_a_reader_that_starts_without_the_store_begins_with_its_file(store, file):
    first = put(store, "a")
    Follower(store, file, lambda: 7.0).poll()
    assert read_kept(file) == Kept(store.real.epoch(), 7.0, (first,))
    store.down = True
    again = Follower(store, file)
    assert again.poll().changed == ("a",)
    assert again.documents == {"a": first}
    assert not again.up
    store.down = False
    assert not again.poll()
    assert again.up


def test_a_reader_that_never_knew_anything_starts_empty_without_the_store(store, file):
    store.down = True
    follower = Follower(store, file)
    assert not follower.poll()
    assert follower.documents == {}
    store.down = False
    put(store, "a")
    assert follower.poll().changed == ("a",)


@pytest.mark.parametrize("restart", [False, True])
def test_a_store_that_comes_back_empty_is_not_applied(store, file, restart):
    put(store, "a")
    follower = Follower(store, file)
    follower.poll()
    store.real = MemoryStore()
    put(store, "z")
    follower = Follower(store, file) if restart else follower
    follower.poll()
    assert set(follower.documents) == {"a"}
    assert "another data set" in follower.regressed
    assert follower.up


def test_a_store_whose_revision_went_back_is_not_applied_at_all(store, file):
    put(store, "a")
    push(store, "a")
    put(store, "b")
    follower = Follower(store, file)
    follower.poll()
    older(store)
    put(store, "a")
    put(store, "b")
    push(store, "b")
    assert not follower.poll()
    assert follower.documents["a"].revision == 2 and follower.documents["b"].revision == 1
    assert follower.regressed == "a went back from revision 2 to 1"


def test_a_model_that_vanished_without_a_removal_stays(store, file):
    put(store, "a")
    follower = Follower(store, file)
    follower.poll()
    older(store)
    assert not follower.poll()
    assert set(follower.documents) == {"a"} and "gone" in follower.regressed


def test_an_old_removal_does_not_explain_that_a_model_is_gone(store, file):
    store.real.remove(put(store, "a"), "ann")
    put(store, "a")
    follower = Follower(store, file)
    follower.poll()
    older(store)
    store.real.remove(put(store, "a"), "ann")
    assert not follower.poll()
    assert "no removal after revision 3" in follower.regressed


def test_a_store_that_is_repaired_is_followed_again(store, file):
    put(store, "a")
    follower = Follower(store, file)
    follower.poll()
    good = store.real
    store.real = MemoryStore()
    follower.poll()
    assert follower.regressed
    store.real = good
    push(store, "a")
    assert follower.poll().changed == ("a",)
    assert follower.regressed == ""


@pytest.mark.parametrize("restart", [False, True])
def test_a_store_that_was_sanctioned_is_followed_as_it_is(store, file, restart):
    put(store, "a")
    follower = Follower(store, file)
    follower.poll()
    store.real = MemoryStore()
    fresh = put(store, "z")
    follower.poll()
    store.real.sanction()
    follower = Follower(store, file) if restart else follower
    changes = follower.poll()
    assert follower.documents == {"z": fresh} and follower.regressed == ""
    assert changes.adopted and (restart or (changes.changed, changes.removed) == (("z",), ("a",)))
    assert follower.poll() == Changes()
    assert Follower(store, file).poll().changed == ("z",)


def test_a_sanction_lets_revisions_go_back_and_models_go(store, file):
    put(store, "a")
    push(store, "a")
    put(store, "b")
    follower = Follower(store, file)
    follower.poll()
    older(store)
    fresh = put(store, "a")
    follower.poll()
    assert follower.regressed
    store.real.sanction()
    assert follower.poll() == Changes(("a",), ("b",), adopted=True)
    assert follower.documents == {"a": fresh}


@pytest.mark.parametrize("seen", ["before the first poll", "while all was well"])
def test_a_sanction_is_heeded_once_and_says_nothing_about_what_is_lost_later(store, file, seen):
    put(store, "a")
    if seen == "before the first poll":
        mark = store.real.sanction()
    follower = Follower(store, file)
    follower.poll()
    if seen == "while all was well":
        mark = store.real.sanction()
        assert follower.poll() == Changes(adopted=True)
    older(store)
    store.real._mark = mark
    for reader in (follower, Follower(store, file)):
        reader.poll()
        assert set(reader.documents) == {"a"} and reader.regressed


def test_a_reader_that_knows_no_model_has_nothing_to_lose(store, file):
    Follower(store, file).poll()
    store.real = MemoryStore()
    put(store, "a")
    assert Follower(store, file).poll().changed == ("a",)


def test_a_sanction_does_not_take_away_what_cannot_be_read(store, file):
    held = put(store, "a")
    follower = Follower(store, file)
    follower.poll()
    push(store, "a")
    store.real._models["a"].kept = zlib.compress(encode(replace(ModelDocument("a"), schema_version=2)))
    store.real.sanction()
    assert follower.poll().adopted
    assert follower.documents == {"a": held}


def test_who_asks_is_told_what_a_reader_refuses_and_nothing_is_applied_by_asking(store, file):
    put(store, "a")
    Follower(store, file).poll()
    assert regression(store, read_kept(file)) == ""
    store.real = MemoryStore()
    put(store, "z")
    raw = file.read_bytes()
    assert "another data set" in regression(store, read_kept(file))
    assert file.read_bytes() == raw
    store.real.sanction()
    assert regression(store, read_kept(file)) == ""


@pytest.mark.parametrize("damage", ["short", "flipped", "empty", "other", "later"])
def test_a_damaged_file_is_not_believed(store, file, damage):
    put(store, "a")
    Follower(store, file).poll()
    raw = file.read_bytes()
    file.write_bytes(
        {
            "short": raw[:-4],
            "flipped": raw.replace(b"documents", b"documentz"),
            "empty": b"",
            "other": b"{}",
            "later": raw.replace(b"schema_version", b"schema_versioN"),
        }[damage]
    )
    store.down = True
    follower = Follower(store, file)
    assert not follower.poll()
    store.down = False
    assert follower.poll().changed == ("a",)
    store.down = True
    assert Follower(store, file).poll().changed == ("a",)


def test_a_file_that_cannot_be_written_stops_nothing_and_is_tried_again(store, tmp_path):
    (tmp_path / "blocked").write_text("a file where a folder should be")
    follower = Follower(store, tmp_path / "blocked" / "routes.json")
    put(store, "a")
    assert follower.poll().changed == ("a",)
    (tmp_path / "blocked").unlink()
    follower.poll()
    assert (tmp_path / "blocked" / "routes.json").exists()


def test_no_temporary_file_is_left(store, file):
    put(store, "a")
    follower = Follower(store, file)
    for _ in range(3):
        push(store, "a")
        follower.poll()
    assert [path.name for path in file.parent.iterdir()] == ["routes.json"]


def test_a_reader_without_a_file_follows_too(store):
    put(store, "a")
    follower = Follower(store, None)
    assert follower.poll().changed == ("a",)
    before = follower.documents
    assert not follower.poll()
    assert follower.documents is before


def test_a_document_that_cannot_be_read_leaves_the_last_good_one_in_force(store, file):
    put(store, "a")
    put(store, "b")
    follower = Follower(store, file)
    follower.poll()
    push(store, "b")
    push(store, "a")
    store.real._models["a"].kept = zlib.compress(encode(replace(ModelDocument("a"), schema_version=2)))
    assert follower.poll().changed == ("b",)
    assert follower.documents["a"].revision == 1
    assert "schema_version" in follower.unreadable["a"]
    store.real._models["a"].kept = zlib.compress(encode(ModelDocument("a")))
    assert follower.poll().changed == ("a",)
    assert follower.unreadable == {}


def test_the_store_going_away_in_the_middle_of_a_poll_applies_nothing(store, file):
    follower = Follower(store, file)
    follower.poll()
    put(store, "a")
    put(store, "b")

    def read_then_fail(model):
        store.down = model == "b"
        return store.__getattr__("read")(model)

    store.read = read_then_fail
    assert not follower.poll()
    assert follower.documents == {} and not follower.up
    store.down = False
    store.read = store.real.read
    assert follower.poll().changed == ("a", "b")
