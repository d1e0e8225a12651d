"""A real supervisor, store and door under kill -9; Ray is a stand-in (stub_supervisor)."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from cluster import procs
from cluster.documents import ModelDocument
from cluster.door import open_door
from cluster.errors import OperatorError, StoreUnavailable
from cluster.home import Home
from cluster.launch import bring_up, take_down
from cluster.settings import HttpSettings, Settings
from cluster.store.redis import RedisStore

pytestmark = pytest.mark.integration

STUB = (sys.executable, str(Path(__file__).parent / "stub_supervisor.py"))
ANY_PORT = Settings(http=HttpSettings(port=0))


def until(what, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if value := what():
            return value
        time.sleep(0.02)
    raise AssertionError("did not happen in time")


def up(home, settings=ANY_PORT):
    steps = []
    return bring_up(home, settings, steps.append, STUB), steps


def everything(home):
    state = home.supervisor()
    return procs.find_marked(home.key, state.leaders if state else ())


def kill(pid):
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def make_home(tmp_path):
    homes = []

    def make(name="home"):
        homes.append(Home(tmp_path / name))
        return homes[-1]

    yield make
    for home in homes:
        take_down(home)


@pytest.fixture
def home(make_home):
    return make_home()


def test_up_tells_its_steps_and_down_leaves_nothing(home):
    boot, steps = up(home)
    assert steps == ["store ready", "Ray ready", f"gateway answers on http://127.0.0.1:{boot.http_port}"]
    assert home.running() == boot
    open_door(boot.door, 1.0).close()
    processes = everything(home)
    assert len(processes) == 4  # supervisor, store, head, its agent
    assert take_down(home) == 4
    assert not any(map(procs.runs, processes))
    assert home.running() is None and not home.run_dir.exists()
    assert take_down(home) == 0


def test_a_killed_store_comes_back_at_the_same_url_with_its_data(home):
    boot, _ = up(home)
    store = RedisStore(boot.store_url)
    store.swap(ModelDocument("m"), "publish", "test")
    epoch = store.epoch()
    kill(home.supervisor().leaders[0].pid)
    killed_s = time.monotonic()

    def answers():
        try:
            return store.epoch() == epoch
        except StoreUnavailable:
            return False

    until(answers)
    assert time.monotonic() - killed_s < 3.0
    assert store.read("m").revision == 1
    store.close()


def test_a_killed_head_is_started_again_behind_the_same_port(home):
    boot, _ = up(home)
    before = home.supervisor().leaders
    kill(before[1].pid)
    until(lambda: home.supervisor().leaders[1:] not in ((), before[1:]) and home.supervisor().phase == "ready")
    assert home.supervisor().leaders[0] == before[0]
    assert home.running().http_port == boot.http_port
    assert len(everything(home)) == 4  # the old head's agent is gone


def test_down_after_a_killed_supervisor_leaves_no_process(home):
    up(home)
    processes = everything(home)
    kill(home.supervisor().pid)
    until(lambda: home.running() is None)
    assert take_down(home) == len(processes) - 1
    assert not any(map(procs.runs, processes))


def test_up_after_a_killed_supervisor_replaces_what_it_left_and_keeps_the_data(home):
    boot, _ = up(home)
    store = RedisStore(boot.store_url)
    epoch = store.epoch()
    left = [process for process in everything(home) if process.pid != home.supervisor().pid]
    kill(home.supervisor().pid)
    boot, _ = up(home)
    assert not any(map(procs.runs, left))
    store = RedisStore(boot.store_url)
    assert store.epoch() == epoch
    store.close()


def test_two_homes_side_by_side_do_not_disturb_each_other(make_home):
    one, two = make_home("one"), make_home("two")
    up(one)
    boot, _ = up(two)
    assert not set(everything(one)) & set(everything(two))
    take_down(one)
    assert len(everything(two)) == 4
    assert home_answers(boot)


def home_answers(boot):
    store = RedisStore(boot.store_url)
    try:
        return bool(store.epoch())
    finally:
        store.close()


def test_a_taken_port_is_one_line_at_once_and_leaves_nothing(home):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        began_s = time.monotonic()
        with pytest.raises(OperatorError, match=f"127.0.0.1:{port}") as caught:
            up(home, Settings(http=HttpSettings(port=port)))
    assert time.monotonic() - began_s < 5.0
    assert "\n" not in caught.value.message
    assert everything(home) == ()


def test_a_failed_deployment_is_told_and_leaves_nothing(home, monkeypatch):
    monkeypatch.setenv("STUB_DEPLOY", "the gateway would not start")
    with pytest.raises(OperatorError, match="the gateway would not start"):
        up(home)
    assert everything(home) == ()
    assert home.running() is None


def test_an_earlier_cluster_on_which_nothing_can_run_is_replaced_by_a_new_one_in_the_same_start(home):
    home.prepare()
    (home.path / "earlier").touch()
    boot, steps = up(home)
    answers = f"gateway answers on http://127.0.0.1:{boot.http_port}"
    assert steps == ["store ready", "Ray ready, the earlier one", "Ray ready", answers]
    assert (home.path / "settled").exists()
    assert len(everything(home)) == 4  # nothing of the first attempt is left


def test_a_second_up_while_one_runs_is_refused_and_harms_nothing(home):
    boot, _ = up(home)
    with pytest.raises(OperatorError, match="already has a supervisor"):
        up(home)
    assert home.running() == boot


def drain(home, node="node-1"):
    """As `prism drain` does: the node that the controller has reported."""
    (home.path / "drain").write_text(f"{node}\n")


def test_a_node_that_is_drained_refuses_new_connections_at_once_and_ends_when_it_is_empty(home, monkeypatch):
    monkeypatch.setenv("STUB_JOINED", "1")
    boot, _ = up(home)
    processes = everything(home)
    with open_door(boot.door, 1.0) as gateways:  # a gateway's own copy: it goes on accepting
        drain(home)
        until(lambda: home.supervisor().phase == "draining")
        with pytest.raises(OperatorError, match="hands out no socket"):
            open_door(boot.door, 0.2)
        socket.create_connection(("127.0.0.1", boot.http_port), 1.0).close()
        gateways.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", boot.http_port), 1.0)
    assert any(map(procs.runs, processes)), "replicas may still be moving away"
    (home.path / "empty").touch()
    until(lambda: not any(map(procs.runs, processes)))
    assert home.running() is None and home.supervisor() is None


def test_a_drained_node_whose_ray_has_ended_is_not_started_again(home, monkeypatch):
    monkeypatch.setenv("STUB_JOINED", "1")
    up(home)
    processes = everything(home)
    drain(home)
    until(lambda: home.supervisor().phase == "draining")
    kill(home.supervisor().leaders[1].pid)
    until(lambda: everything(home) == () and home.supervisor() is None)
    procs.stop(filter(procs.runs, processes), 1.0)  # the agent that lost its mark, and now its session's leader


def test_a_node_that_is_drained_before_it_was_ever_ready_leaves_and_up_says_so(home, monkeypatch):
    monkeypatch.setenv("STUB_JOINED", "1")
    home.prepare()
    (home.path / "deploying").touch()
    drain(home)
    (home.path / "empty").touch()
    with pytest.raises(OperatorError, match="was drained before it was ready"):
        up(home)
    assert everything(home) == () and home.running() is None


def test_a_drain_of_a_node_that_is_starting_again_is_carried_out_under_its_new_id(home, monkeypatch):
    monkeypatch.setenv("STUB_JOINED", "1")
    up(home)
    (home.path / "deploying").touch()
    kill(home.supervisor().leaders[1].pid)
    until(lambda: (home.path / "lives").stat().st_size == 2)
    drain(home, "node-1")
    until(lambda: home.supervisor().phase == "draining")
    until(lambda: (home.path / "drain").read_text().split() == ["node-1", "node-2"])
    (home.path / "empty").touch()
    until(lambda: everything(home) == () and home.supervisor() is None)
