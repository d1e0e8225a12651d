"""A home's folders, secrets, and what it knows of its supervisor."""

import os
import stat

import pytest

from cluster import home as home_module
from cluster.errors import OperatorError
from cluster.home import Home, SupervisorState
from cluster.procs import Identity
from cluster.settings import Boot, Settings


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(home_module, "RUN_ROOT", tmp_path / "run")
    (tmp_path / "run").mkdir()
    return Home(tmp_path / "home")


def boot_of(home):
    return Boot(str(home), str(home.run_dir), "", "redis://x", "", "", "token", "secret", 1, 2, Settings())


def state_of(pid, phase="ready"):
    identity = Identity.of(pid)
    return SupervisorState(pid, identity.started_s, phase)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_two_spellings_of_one_path_are_one_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Home(tmp_path / "a" / ".." / "b").key == Home(tmp_path / "b").key
    assert Home(tmp_path / "a").key != Home(tmp_path / "b").key


def test_sockets_of_a_deeply_nested_home_still_have_short_paths(tmp_path):
    deep = Home(tmp_path.joinpath(*["a-long-folder-name"] * 20))
    assert len(str(deep.run_dir)) < 40


def test_nobody_else_may_enter_a_prepared_home(home):
    home.prepare()
    assert mode(home.run_dir) == 0o700
    assert mode(home.path) == 0o700


def test_preparing_twice_changes_nothing(home):
    home.prepare()
    secret = home.secret("token")
    home.prepare()
    assert home.secret("token") == secret


def test_a_run_folder_that_others_may_enter_is_refused(home):
    home.run_dir.mkdir(mode=0o755)
    home.run_dir.chmod(0o755)
    with pytest.raises(OperatorError, match="only this user"):
        home.prepare()


def test_a_run_folder_that_is_a_link_is_refused(home, tmp_path):
    target = tmp_path / "elsewhere"
    target.mkdir(mode=0o700)
    home.run_dir.symlink_to(target)
    with pytest.raises(OperatorError, match="only this user"):
        home.prepare()


def test_a_home_below_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="cannot write in") as caught:
        Home(tmp_path / "file" / "home").prepare()
    assert "\n" not in caught.value.message


def test_a_full_disk_is_refused_with_its_numbers(home, monkeypatch):
    monkeypatch.setattr(home_module, "MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(OperatorError, match=r"\d+ MiB of disk left"):
        home.prepare()


def test_a_secret_is_made_once_and_only_its_owner_reads_it(home):
    first = home.secret("token")
    assert len(first) == 64
    assert home.secret("token") == first
    assert home.secret("other") != first
    assert mode(home.secret_file("token")) == 0o600


def test_a_home_nobody_supervises_is_not_running(home):
    assert home.supervisor() is None
    assert home.running() is None


def test_a_home_with_a_live_supervisor_and_a_boot_file_is_running(home):
    home.prepare()
    home.write_supervisor(state_of(os.getpid()))
    assert home.running() is None
    boot_of(home).write(home.boot_file)
    assert home.running() == boot_of(home)


def test_a_reused_process_id_is_not_taken_for_the_supervisor(home):
    home.prepare()
    boot_of(home).write(home.boot_file)
    home.write_supervisor(SupervisorState(os.getpid(), started_s=1.0, phase="ready"))
    assert home.running() is None


def test_what_the_supervisor_wrote_is_read_back_whole(home):
    home.prepare()
    written = SupervisorState(7, 1.5, "recovering", ("store ready",), "why", (Identity(8, 2.5),))
    home.write_supervisor(written)
    assert home.supervisor() == written


def test_a_torn_supervisor_file_reads_as_none(home):
    home.prepare()
    home.supervisor_pid_file.write_text('{"pid": 1')
    assert home.supervisor() is None
