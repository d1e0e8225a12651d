"""What only a store with a server can show: it dies, hangs, is restarted, loses answers, keeps secrets."""

import socket
import threading
import time
import zlib
from dataclasses import replace

import pytest

from cluster.documents import ModelDocument, encode
from cluster.errors import InvalidRequest, StaleRevision, StoreUnavailable
from cluster.store.redis import RedisStore
from cluster.store.url import redacted


@pytest.fixture
def store(own_server):
    made = RedisStore(own_server.url)
    yield made
    made.close()


def test_a_killed_store_is_unavailable_at_once_and_comes_back_with_every_commit(own_server, store):
    epoch = store.epoch()
    held = store.swap(ModelDocument("m"), "publish", "ann")
    for _ in range(50):
        held = store.swap(held, "step", "ann")
    own_server.kill()
    for ask in (store.epoch, store.models, lambda: store.read("m"), lambda: store.swap(held, "step", "ann")):
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            ask()
        assert time.monotonic() - began_s < 1.5
    own_server.start()
    assert store.read("m") == held
    assert store.epoch() == epoch
    assert len(store.history("m")) == 51
    assert store.swap(held, "step", "ann").revision == 52


def test_every_connection_survives_a_restart_unnoticed(own_server, store):
    store.swap(ModelDocument("m"), "publish", "ann")
    barrier = threading.Barrier(8)

    def use():
        barrier.wait()
        for _ in range(20):
            store.read("m")

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    own_server.kill()
    own_server.start()
    failures = []
    for _ in range(20):
        try:
            store.read("m")
        except StoreUnavailable as error:
            failures.append(error)
    assert failures == []


def test_waiting_outlives_a_restart_and_the_return_is_a_hint(own_server, store):
    store.epoch()
    assert store.wait(0.3) is False
    own_server.kill()
    began_s = time.monotonic()
    assert store.wait(0.3) is False
    assert time.monotonic() - began_s >= 0.25
    own_server.start()
    assert store.wait(8) is True


def test_a_server_that_accepts_and_never_answers_blocks_for_a_bounded_time():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = RedisStore(f"redis://:pa55word@127.0.0.1:{silent.getsockname()[1]}/0", timeout_s=0.2)
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailable) as error:
            store.read("m")
        assert time.monotonic() - began_s < 1.5
        assert "pa55word" not in error.value.message
        store.close()


def test_a_wrong_password_is_told_without_showing_any(own_server):
    wrong = own_server.url.replace("redis://:", "redis://:wr0ng-")
    store = RedisStore(wrong)
    with pytest.raises(StoreUnavailable) as error:
        store.epoch()
    assert "password" in error.value.message
    assert "wr0ng" not in error.value.message
    store.close()


@pytest.mark.parametrize("url", ["", "nope", "http://x:s3cret@y", "redis://:s3cret@h:port/0"])
def test_a_url_that_is_none_is_refused_without_showing_the_password(url):
    with pytest.raises(InvalidRequest, match="store url") as error:
        RedisStore(url)
    assert "s3cret" not in error.value.message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@h:1/0", "redis://h:1/0"),
        ("rediss://ann:secret@h:1/0?ssl=1", "rediss://h:1/0?ssl=1"),
        ("unix:///run/x.sock?password=secret&db=1", "unix:///run/x.sock?password=***&db=1"),
        ("redis://h", "redis://h"),
        ("redis://:a/b@c@h:1", "redis://h:1"),
    ],
)
def test_a_redacted_url_shows_no_secret(url, shown):
    assert redacted(url) == shown


def test_a_commit_whose_answer_was_lost_is_not_done_twice(own_server, store):
    held = store.swap(ModelDocument("m"), "publish", "ann")
    script = store._commit_script
    asked = []

    def loses_the_answer(keys, args):
        asked.append(script(keys=keys, args=args))
        return script(keys=keys, args=args)  # as the client does when the connection closed under it

    store._commit_script = loses_the_answer
    assert store.swap(held, "step", "ann").revision == 2
    store.remove(store.read("m"), "ann")
    assert [entry.revision for entry in store.history("m")] == [3, 2, 1]
    assert len(asked) == 2


def test_a_server_that_comes_back_empty_refuses_what_was_read_before(own_server, store):
    held = store.swap(ModelDocument("m"), "publish", "ann")
    epoch = store.epoch()
    store._redis.flushall()
    with pytest.raises(StaleRevision, match="no such model now"):
        store.swap(held, "split", "ann")
    assert store.epoch() != epoch
    assert store.models() == ()


def test_a_document_that_a_later_schema_wrote_is_refused_clearly(store):
    held = store.swap(ModelDocument("m"), "publish", "ann")
    later = zlib.compress(encode(replace(held, schema_version=2)))
    store._redis.hset("prism:{m}:document", "document", later)
    with pytest.raises(InvalidRequest, match="schema_version: this Prism reads 1, got 2"):
        store.read("m")


def test_a_damaged_document_is_refused_clearly(store):
    store.swap(ModelDocument("m"), "publish", "ann")
    store._redis.hset("prism:{m}:document", "document", b"xx")
    with pytest.raises(InvalidRequest, match="document"):
        store.read("m")


def test_all_agree_on_the_epoch_of_a_fresh_store(own_server):
    stores = [RedisStore(own_server.url) for _ in range(8)]
    barrier = threading.Barrier(8)
    epochs = []

    def ask(store):
        barrier.wait()
        epochs.append(store.epoch())

    threads = [threading.Thread(target=ask, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for store in stores:
        store.close()
    assert len(epochs) == 8 and len(set(epochs)) == 1


def test_a_server_that_may_lose_commits_is_told_of(own_server, store):
    assert store.durability_warnings() == ()
    store._redis.config_set("maxmemory-policy", "allkeys-lru")
    assert "allkeys-lru" in store.durability_warnings()[0]
