"""What a head hands to the nodes that join it, and what keeps a node from joining."""

import json
import os
import socket
import stat
from dataclasses import replace

import pytest

from cluster import home as home_module
from cluster import supervisor
from cluster.errors import InvalidRequest, OperatorError
from cluster.home import Home, SupervisorState
from cluster.join import (
    JoinDocument,
    check_local,
    check_reachable,
    check_shared,
    is_loopback,
    joinable,
    outward_ip,
)
from cluster.parts import parts_for
from cluster.procs import Identity
from cluster.settings import BOOT_VARIABLE, ArtifactSettings, Boot, GatewaySettings, RaySettings, Settings

DOCUMENT = JoinDocument(
    "10.0.0.1:6379", "redis://:pw@10.0.0.1:7000/0", "s3://bucket/a", "ray", "admin", "wire", GatewaySettings(replicas=3)
)


@pytest.fixture
def file(tmp_path):
    DOCUMENT.write(tmp_path / "join.json")
    return tmp_path / "join.json"


def test_a_join_file_is_for_its_owner_only_and_reads_back(file):
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert JoinDocument.read(file) == DOCUMENT


def test_a_join_file_that_others_may_read_is_refused(file):
    file.chmod(0o640)
    with pytest.raises(OperatorError, match="chmod 600"):
        JoinDocument.read(file)


def test_a_join_file_that_is_missing_damaged_or_of_another_version_is_one_clear_line(file, tmp_path):
    with pytest.raises(OperatorError, match=r"copy join\.json from the home of the head"):
        JoinDocument.read(tmp_path / "other.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "prism": "0.0.1"}))
    with pytest.raises(OperatorError, match=r"runs Prism 0\.0\.1"):
        JoinDocument.read(file)
    file.write_text("{")
    with pytest.raises(OperatorError, match="is no join file"):
        JoinDocument.read(file)


def test_a_head_hands_over_its_own_secrets_and_addresses():
    boot = Boot("/h", "/r", "/d", "redis://x", "/a", "10.0.0.1:1", "admin", "wire", 1, 2, Settings(), "10.0.0.1")
    document = JoinDocument.of_head(boot, "token")
    assert (document.address, document.store_url, document.artifacts_url) == ("10.0.0.1:1", "redis://x", "/a")
    assert (document.ray_token, document.admin_token, document.wire_secret) == ("token", "admin", "wire")


def test_the_clusters_secrets_replace_those_of_the_home(tmp_path, monkeypatch):
    monkeypatch.setattr(home_module, "RUN_ROOT", tmp_path)
    home = Home(tmp_path / "home")
    mine = home.secret("wire-secret")
    DOCUMENT.keep_secrets(home)
    assert (home.secret("wire-secret"), home.secret("ray-token"), mine != "wire") == ("wire", "ray", True)
    assert stat.S_IMODE(home.secret_file("admin-token").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "url", ["redis://localhost:6379", "redis://127.0.0.1:1/0", "redis://[::1]:1", "unix:///s.sock"]
)
def test_a_store_that_only_the_head_reaches_is_refused_for_several_machines(url):
    with pytest.raises(OperatorError, match="only this machine reaches"):
        check_shared("10.0.0.1", url)
    check_shared("127.0.0.1", url)
    check_shared("127.0.0.2", url)  # several nodes on one machine


def test_a_store_elsewhere_is_taken():
    check_shared("10.0.0.1", "rediss://user:pw@redis.example:6380/0")


def test_a_head_that_does_not_answer_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OperatorError, match=f"{address} does not answer"):
            check_reachable(replace(DOCUMENT, address=address))
    with pytest.raises(OperatorError, match="does not answer"):
        check_reachable(replace(DOCUMENT, address="nonsense"))


def test_a_folder_of_artifacts_must_be_shared(tmp_path):
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        here = replace(DOCUMENT, address=f"127.0.0.1:{head.getsockname()[1]}", artifacts_url="memory://a")
        check_reachable(here)
        check_reachable(replace(here, artifacts_url=str(tmp_path)))
        with pytest.raises(OperatorError, match="is not there on this machine"):
            check_reachable(replace(here, artifacts_url=str(tmp_path / "not-mounted")))


def test_artifacts_at_a_url_that_cannot_be_used_here_are_told_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(InvalidRequest, match="nonsense"):
        parts_for(Home(tmp_path / "home"), Settings(artifacts=ArtifactSettings("nonsense://bucket")))
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        here = replace(DOCUMENT, address=f"127.0.0.1:{head.getsockname()[1]}")
        with pytest.raises(InvalidRequest, match="nonsense"):
            check_reachable(replace(here, artifacts_url="nonsense://bucket"))


def test_why_the_last_start_came_to_nothing_replaces_what_an_earlier_one_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(home_module, "RUN_ROOT", tmp_path)
    home = Home(tmp_path / "home")
    home.prepare()
    settings = tmp_path / "settings.yaml"
    settings.write_text("artifacts: {url: 'nonsense://bucket'}")
    home.write_supervisor(SupervisorState(2**22 + 1, 1.0, "failed", error="the port was taken"))
    monkeypatch.setattr("sys.argv", ["supervisor", "--home", str(home), "--config", str(settings)])
    assert supervisor.main() == 1
    assert "nonsense" in home.supervisor().error and "nonsense" in capsys.readouterr().err
    me = Identity.of(os.getpid())
    home.write_supervisor(SupervisorState(me.pid, me.started_s, "ready"))
    assert supervisor.main() == 1
    assert home.supervisor().phase == "ready"  # one that lives speaks for itself


def test_a_head_whose_autoscaler_has_no_file_is_not_started(tmp_path, monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    file = tmp_path / "cluster.yaml"
    settings = Settings(ray=RaySettings(autoscaling_config=str(file)))
    with pytest.raises(OperatorError, match=r"ray\.autoscaling_config: .*cluster\.yaml is not there"):
        parts_for(Home(tmp_path / "home"), settings)
    file.write_text("")
    assert parts_for(Home(tmp_path / "home"), settings).watch is None


def test_the_address_of_this_machine_is_the_one_that_leads_to_the_head():
    assert outward_ip("127.0.0.1:6379") == "127.0.0.1"
    with pytest.raises(OperatorError, match="HOST:PORT"):
        outward_ip("head")


def test_a_node_listens_on_an_address_of_this_machine():
    check_local("127.0.0.1")
    with pytest.raises(OperatorError, match=r"192\.0\.2\.1 is no address of this machine"):
        check_local("192.0.2.1")  # reserved for documentation


def test_loopback_addresses_and_joinable_heads():
    assert [is_loopback(host) for host in ("localhost", "127.9.9.9", "::1", "10.0.0.1", "example.org", "")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert not joinable("127.0.0.1") and joinable("127.0.0.2") and joinable("10.0.0.1")


@pytest.mark.parametrize("ip", ["0.0.0.0", "::", "head", "", "10.0.0"])
def test_a_node_has_one_ip_address(ip):
    with pytest.raises(InvalidRequest, match=r"ray\.node_ip: expected an IP address"):
        Settings(ray=RaySettings(node_ip=ip))


def test_a_process_finds_the_boot_file_of_its_node(tmp_path, monkeypatch):
    monkeypatch.delenv(BOOT_VARIABLE, raising=False)
    with pytest.raises(InvalidRequest, match="not started by prism up"):
        Boot.of_this_node()
    boot = Boot("/h", "/r", "/d", "redis://x", "/a", "10.0.0.1:1", "admin", "wire", 1, 2, Settings(), "10.0.0.1")
    boot.write(tmp_path / "boot.json")
    monkeypatch.setenv(BOOT_VARIABLE, str(tmp_path / "boot.json"))
    assert Boot.of_this_node() == boot
