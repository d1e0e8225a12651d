"""Boots of a Ray cluster in a real server."""

import pytest
import redis

from cluster.errors import OperatorError
from cluster.ray_boots import RayBoots
from cluster.ray_storage import RayStorage
from cluster.store.redis import RedisStore


@pytest.fixture
def server(own_server):
    client = redis.Redis.from_url(own_server.url)
    yield client
    client.close()


@pytest.fixture
def head(own_server):
    """Makes the boots of one more head of a cluster."""
    made = []

    def make(token="token", software="Prism 1"):
        made.append(RayBoots(RayStorage.parse(own_server.url), token, software))
        return made[-1]

    yield make
    for boots in made:
        boots.close()


def came_up(boots, server):
    """The namespace of a boot that has come up, with what Ray would have written."""
    namespace = boots.begin().boot.namespace
    server.hset(f"RAY{namespace}@NODE", "node", "alive")
    boots.settle()
    return namespace


def test_the_next_head_goes_on_with_the_boot_and_the_namespace_of_the_last(head, server):
    first = head()
    first.check()
    namespace = came_up(first, server)
    assert first.told() == "Ray ready"
    for _ in range(5):  # each comes up, so that attempts do not add up
        later = head()
        choice = later.begin()
        assert choice.continued and choice.boot.namespace == namespace
        assert later.told() == "Ray ready, the cluster of the last head goes on"
        later.settle()
    assert server.exists(f"RAY{namespace}@NODE")


def test_a_boot_that_never_came_up_is_not_gone_on_with_and_what_it_left_is_deleted(head, server):
    lost = head().begin().boot.namespace
    server.hset(f"RAY{lost}@NODE", "node", "alive")
    namespace = came_up(head(), server)
    assert namespace != lost
    assert server.keys("RAY*") == [f"RAY{namespace}@NODE".encode()]


def test_a_boot_that_cannot_be_continued_is_replaced_once_another_has_come_up(head, server):
    namespace = came_up(head(), server)
    later = head()
    assert later.begin().continued
    assert later.give_up("Ray did not start")
    assert server.exists(f"RAY{namespace}@NODE")  # nothing is lost until something else is there
    new = came_up(later, server)
    assert new != namespace and server.keys("RAY*") == [f"RAY{new}@NODE".encode()]
    assert later.told() == "Ray ready, as a new cluster: the earlier one is not continued: Ray did not start"
    assert head().begin().boot.namespace == new


def test_a_new_boot_that_fails_is_no_reason_to_try_another(head):
    boots = head()
    assert not boots.begin().continued
    assert not boots.give_up("the port is taken")


def test_a_boot_that_was_ended_is_not_used_again_and_leaves_nothing_but_other_clusters(head, server):
    theirs = came_up(head("another token"), server)
    server.hset("RAYdefault@NODE", "node", "of somebody else")
    namespace = came_up(head(), server)
    head().end()
    assert server.keys(f"RAY{namespace}*") == [] and server.exists(f"RAY{theirs}@NODE", "RAYdefault@NODE") == 2
    assert head().begin().boot.namespace != namespace
    assert head("another token").begin().boot.namespace == theirs


def test_a_record_that_cannot_be_read_keeps_no_head_from_starting(head, server):
    came_up(head(), server)
    (key,) = server.keys("prism:boot:*")
    server.set(key, b"\xff{")
    assert not head().begin().continued


def test_the_token_is_not_kept_in_the_server(head, server):
    came_up(head("a-token-to-look-for"), server)
    assert not any(b"a-token-to-look-for" in key + (server.get(key) or b"") for key in server.keys("prism:*"))


def test_a_version_stores_database_is_refused(head, own_server):
    store = RedisStore(own_server.url)
    store.epoch()
    store.close()
    with pytest.raises(OperatorError, match=r"ray\.fault_tolerance_url: redis://\S+ is a version store's database"):
        head().check()


def test_a_server_that_refuses_or_does_not_answer_is_one_line_without_the_password(own_server):
    right = RayStorage.parse(own_server.url)
    wrong = RayBoots(RayStorage(right.host, right.port, password="not-the-password"), "token", "Prism 1")
    with pytest.raises(OperatorError, match="refuses the password") as refused:
        wrong.check()
    assert "not-the-password" not in refused.value.message
    gone = RayBoots(right, "token", "Prism 1")
    own_server.kill()
    for ask in (gone.check, gone.begin, gone.end):
        with pytest.raises(OperatorError, match=rf"{right.address} cannot be reached") as unreachable:
            ask()
        assert right.password not in unreachable.value.message and "\n" not in unreachable.value.message
