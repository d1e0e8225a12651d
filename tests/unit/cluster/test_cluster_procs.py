"""Which processes belong to a home, and stopping them."""

import os
import subprocess
import sys
import uuid

import psutil
import pytest

from cluster import procs
from cluster.procs import Identity

SLEEP = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
CHILD = (
    "import subprocess, sys; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], env={}); "
    "print(child.pid, flush=True); child.wait()"
)


@pytest.fixture
def key():
    return uuid.uuid4().hex


@pytest.fixture
def start(key):
    started = []

    def start(code, marked=True, session=True):
        env = procs.marked(os.environ, key) if marked else dict(os.environ)
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, start_new_session=session
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def pids(processes):
    return {process.pid for process in processes}


def test_a_marked_process_is_found_and_others_are_not(start, key):
    ours, other = start(SLEEP), start(SLEEP, marked=False)
    assert pids(procs.find_marked(key)) == {ours.pid}
    assert other.pid not in pids(procs.find_marked(key))


def test_another_homes_process_is_left_alone(start):
    start(SLEEP)
    assert procs.find_marked(uuid.uuid4().hex) == ()


def test_a_child_that_lost_its_mark_is_found_by_its_session(start, key):
    parent = start(CHILD)
    child = int(parent.stdout.readline())
    assert pids(procs.find_marked(key)) == {parent.pid, child}


def test_a_marked_process_in_our_own_session_does_not_drag_us_in(start, key):
    ours = start(SLEEP, session=False)
    assert pids(procs.find_marked(key)) == {ours.pid}


def test_the_session_of_a_leader_that_was_written_down_belongs(start, key):
    unmarked = start(SLEEP, marked=False)
    identity = Identity.of(unmarked.pid)
    assert pids(procs.find_marked(key, [identity])) == {unmarked.pid}


def test_a_leader_whose_id_was_reused_is_passed_over(start, key):
    unmarked = start(SLEEP, marked=False)
    assert procs.find_marked(key, [Identity(unmarked.pid, started_s=1.0)]) == ()


def test_our_own_ancestors_never_belong(key, monkeypatch):
    code = (
        "import os, sys; from cluster import procs; "
        "print(len(procs.find_marked(os.environ['PRISM_HOME_KEY'])), flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"],
        env=procs.marked(os.environ, key),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0"


def test_a_process_that_listens_to_sigterm_is_not_killed(start):
    process = start(SLEEP)
    assert procs.stop([psutil.Process(process.pid)], grace_s=5.0) == 0
    assert process.wait() == -15


def test_a_process_deaf_to_sigterm_is_killed_after_its_grace(start):
    process = start(DEAF)
    process.stdout.readline()
    assert procs.stop([psutil.Process(process.pid)], grace_s=0.1) == 1
    assert process.wait() == -9


def test_stopping_a_home_leaves_none_of_it_and_all_of_the_rest(start, key):
    parent, other = start(CHILD), start(SLEEP, marked=False)
    parent.stdout.readline()
    assert procs.stop_marked(key, grace_s=1.0) == 2
    assert procs.find_marked(key) == ()
    assert other.poll() is None


def test_stopping_what_is_not_there_is_nothing(key):
    assert procs.stop_marked(key, grace_s=1.0) == 0


def test_an_ended_process_has_no_identity(start):
    process = start("pass")
    process.wait()
    assert Identity.of(process.pid) is None
