"""Backups, over memory and over a real server."""

import itertools
from dataclasses import replace

import pytest

from cluster.documents import ModelDocument
from cluster.errors import InvalidRequest, ModelNotFound
from cluster.store.follow import Follower
from cluster.store.kept import Kept, back_up, read_kept, restore, write_kept
from cluster.store.memory import MemoryStore
from cluster.store.redis import RedisStore

_NUMBER = itertools.count()


@pytest.fixture(params=["memory", "redis"])
def store(request):
    """A store that may hold models of other tests."""
    made = MemoryStore() if request.param == "memory" else RedisStore(request.getfixturevalue("store_server").url)
    yield made
    made.close()


@pytest.fixture
def model():
    return f"kept-{next(_NUMBER)}"


def lost(model, revision=7, **changes):
    """What was known of a model in a data set that is gone."""
    return Kept("0" * 32, 5.0, (ModelDocument(model, next_version=3, revision=revision, epoch="0" * 32, **changes),))


def test_a_backup_holds_every_document_and_survives_the_file(store, model, tmp_path):
    held = store.swap(ModelDocument(model, next_version=4), "publish", "ann")
    kept = back_up(store)
    assert held in kept.documents and kept.epoch == store.epoch()
    write_kept(tmp_path / "new" / "backup", kept)
    assert read_kept(tmp_path / "new" / "backup") == kept
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["backup"]


def test_what_was_lost_is_restored_above_the_revisions_that_were_known(store, model):
    assert restore(store, lost(model), "ann", "the disk broke") == (model,)
    document = store.read(model)
    assert document == ModelDocument(model, next_version=3, revision=8, epoch=store.epoch())
    (entry,) = store.history(model)
    assert (entry.operation, entry.by, entry.reason) == ("restore", "ann", "the disk broke")


def test_a_restore_is_a_change_like_any_other_where_something_is_there(store, model):
    store.swap(ModelDocument(model, next_version=2), "publish", "bob")
    restore(store, lost(model, revision=1), "ann")
    assert store.read(model).revision == 2 and store.read(model).next_version == 3
    assert [entry.operation for entry in store.history(model)] == ["restore", "publish"]


def test_a_number_of_a_version_is_not_used_again_after_a_restore(store, model):
    store.swap(ModelDocument(model, next_version=9), "publish", "bob")
    restore(store, lost(model), "ann")
    assert store.read(model).revision == 8 and store.read(model).next_version == 9


def test_what_is_there_as_it_was_kept_is_left_alone(store, model):
    store.swap(ModelDocument(model), "publish", "bob")
    assert restore(store, back_up(store), "ann") == ()
    assert store.read(model).revision == 1


def test_a_removed_model_comes_back_with_a_revision_of_its_own(store, model):
    held = store.swap(ModelDocument(model), "publish", "bob")
    kept = Kept(store.epoch(), 1.0, (held,))
    store.remove(held, "bob")
    restore(store, kept, "ann")
    assert store.read(model).revision == 3


def test_models_that_were_not_kept_stay(store, model):
    other = store.swap(ModelDocument(f"{model}.other"), "publish", "bob")
    restore(store, lost(model), "ann")
    assert store.read(f"{model}.other") == other


def test_readers_of_the_lost_data_follow_the_restored_and_nothing_in_between(store, model, tmp_path):
    file = tmp_path / "routes.json"
    write_kept(file, replace(lost(model), mark=store.sanctioned()))
    reader = Follower(store, file)
    reader.poll()
    assert reader.regressed and reader.documents[model].revision == 7
    restore(store, read_kept(file), "ann")
    assert reader.poll().adopted
    assert reader.documents[model] == store.read(model) and not reader.regressed


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff\n{}", b"0" * 64 + b"\n{}"])
def test_a_file_that_is_no_backup_is_refused_by_name(raw, tmp_path):
    (tmp_path / "backup").write_bytes(raw)
    with pytest.raises(InvalidRequest, match="backup: the checksum"):
        read_kept(tmp_path / "backup")
    with pytest.raises(InvalidRequest, match="nothing: No such file"):
        read_kept(tmp_path / "nothing")


def test_a_backup_while_a_model_is_removed_goes_without_it():
    class Removing(MemoryStore):
        def read(self, model):
            raise ModelNotFound(model)

    store = Removing()
    store.swap(ModelDocument("a"), "publish", "ann")
    assert replace(back_up(store), at_s=0.0) == Kept(store.epoch(), 0.0)
