"""`prism drain`, the nodes in `prism status`, and how `prism up` refuses to join."""

import json
import os
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from cluster.artifacts_store import ArtifactStore
from cluster.cli import nodes as nodes_module
from cluster.cli import up as up_module
from cluster.cli.main import cli
from cluster.cli.nodes import node_facts, nodes_text
from cluster.cli.session import Session
from cluster.cli.up import start_head
from cluster.errors import OperatorError, ServingError
from cluster.home import Home, SupervisorState
from cluster.join import JoinDocument
from cluster.nodes import DrainRequest, NodeReport, NodeReports
from cluster.procs import Identity
from cluster.ray_storage import URL_VARIABLE
from cluster.settings import Boot, GatewaySettings, HttpSettings, Settings
from cluster.store.memory import MemoryStore

HEAD = NodeReport("aa" * 28, "10.0.0.1", "alpha", head=True, door_port=8000, gateway="RUNNING", total={"CPU": 8.0})
WORKER = NodeReport(
    "bb" * 28, "10.0.0.2", "beta", door_port=8000, gateway="RUNNING", replicas={"m:1": 2},
    total={"CPU": 8.0, "GPU": 1.0, "memory": 8.0 * 2**30}, used={"CPU": 2.0, "GPU": 0.5, "memory": 700.0 * 2**20},
    labels={"ray.io/node-id": "bb" * 28, "ray.io/accelerator-type": "A100", "pool": "red"},
)  # fmt: skip
EMPTY = replace(WORKER, state="DRAINED", gateway="", replicas={}, used={})


class Reporting(MemoryStore):
    """A store in which the controller's reports change with every look."""

    def __init__(self, *looks):
        super().__init__()
        self.looks = list(looks)
        kept = self.nodes.reports
        self.nodes.reports = lambda: self._look() or kept()

    def _look(self):
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return NodeReports(look, time.time() + 1)


@pytest.fixture
def session(tmp_path):
    boot = Boot(str(tmp_path), "", "", "redis://:pw@h:1/0", str(tmp_path / "a"), "", "admin", "wire", 1, 2, Settings())

    def make(*looks):
        return Session(boot, Reporting(*looks), ArtifactStore(str(tmp_path / "a"), tmp_path / "cache"), "ada")

    return make


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(nodes_module, "_STEP_S", 0.001)


def run(session, *arguments):
    done = CliRunner().invoke(cli, arguments, obj=session)
    if isinstance(done.exception, ServingError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("last", [(HEAD, EMPTY), (HEAD,)], ids=["empty", "gone"])
def test_drain_waits_until_nothing_is_left_and_tells_what_still_is(session, last):
    given = session((HEAD, WORKER), (HEAD, WORKER), (HEAD, replace(WORKER, gateway="", replicas={"m:1": 1})), last)
    told = run(given, "drain", "10.0.0.2").splitlines()
    assert [line.partition(": ")[2] for line in told[:-1]] == ["left: 2 of m:1, the gateway", "left: 1 of m:1"]
    assert told[-1] == "bbbbbbbbbbbb (beta, 10.0.0.2) is drained"
    assert given.store.nodes.drains()[WORKER.id].by == "ada"


def test_drain_follows_a_node_that_has_joined_again_meanwhile(session):
    again = replace(WORKER, id="cc" * 28)
    given = session((HEAD, WORKER), (HEAD, WORKER), (HEAD, again), (HEAD, replace(again, state="DRAINED")))
    given.store.nodes.drain(again.id, DrainRequest("ada", 1.0))  # as the node's supervisor does
    told = run(given, "drain", "10.0.0.2").splitlines()
    assert [line[:12] for line in told] == ["bbbbbbbbbbbb", "cccccccccccc", "bbbbbbbbbbbb"]
    assert told[-1].endswith("is drained")


def test_drain_can_leave_the_waiting_to_others(session):
    facts = json.loads(run(session((HEAD, WORKER)), "drain", "beta", "--no-wait", "--json"))
    assert facts == {"node": WORKER.id, "address": "10.0.0.2", "state": "DRAINING"}


def test_drain_says_what_could_not_move_in_time(session):
    with pytest.raises(OperatorError, match=r"was not empty after 0 s .*2 of m:1.* no room"):
        run(session((HEAD, WORKER)), "drain", "bbbb", "--timeout", "0")


@pytest.mark.parametrize(("node", "told"), [("alpha", "is the head"), ("10.0.0.9", "names none.*10.0.0.2")])
def test_the_head_and_an_unknown_node_are_not_drained(session, node, told):
    given = session((HEAD, WORKER))
    with pytest.raises(ServingError, match=told):
        run(given, "drain", node)
    assert given.store.nodes.drains() == {}


def test_status_shows_every_node_with_what_runs_there(session):
    facts = json.loads(run(session((HEAD, WORKER)), "status", "--json"))["nodes"]
    assert [node["address"] for node in facts["nodes"]] == ["10.0.0.1", "10.0.0.2"]
    text = nodes_text(facts, facts["at_s"])
    assert (
        len(text) == 1
        and "m:1 x2" in text[0]
        and "0.5/1" in text[0]
        and "0.68/8" in text[0]
        and " pool=red, accelerator-type=A100 " in text[0]
        and "node-id" not in text[0]
        and "10.0.0.1 (head)" in text[0]
    )


def test_an_old_report_is_shown_as_such():
    facts = node_facts(NodeReports((HEAD,), 1000.0))
    assert "1000 s ago" in nodes_text(facts, 2000.0)[-1]
    assert nodes_text(node_facts(NodeReports()), 2000.0) == []


def test_status_and_drain_say_why_a_node_does_not_drain(session):
    stuck = replace(WORKER, reason="cannot be drained: the raylet does not answer")
    told = run(session((HEAD, stuck), (HEAD, stuck), (HEAD, EMPTY)), "drain", "beta")
    assert "beta, 10.0.0.2): cannot be drained: the raylet does not answer" in told
    lines = nodes_text(node_facts(NodeReports((HEAD, stuck), 1000.0)), 1000.0)
    assert lines[1:] == ["warning  10.0.0.2 cannot be drained: the raylet does not answer"]


def up(home, *arguments):
    done = CliRunner().invoke(cli, ["up", "--home", str(home.path), *arguments])
    assert isinstance(done.exception, OperatorError), done.output
    return done.exception.message


JOINED = JoinDocument("127.0.0.1:1", "redis://x", "/a", "r", "a", "w", GatewaySettings())


def test_up_refuses_to_join_without_the_heads_file_and_to_turn_a_head_or_a_node_into_the_other(tmp_path):
    home = Home(tmp_path / "home")
    assert "copy join.json" in up(home, "--address", "127.0.0.1:1")
    home.path.mkdir()
    JOINED.write(home.join_file)
    assert "is a node of another cluster" in up(home)
    assert "127.0.0.1:1 does not answer" in up(home, "--address", "127.0.0.1:1")
    home.ray_port_file.write_text("1")
    assert "holds a head's state" in up(home, "--join", str(home.join_file))


def test_a_head_that_only_this_machine_reaches_and_whose_store_is_elsewhere_is_a_head_too(tmp_path):
    home = Home(tmp_path / "home")
    home.path.mkdir()
    JOINED.write(tmp_path / "join.json")
    assert "does not answer" in up(home, "--join", str(tmp_path / "join.json"))
    home.head_file.touch()
    assert "holds a head's state" in up(home, "--join", str(tmp_path / "join.json"))


def test_every_command_that_brings_a_head_up_reads_the_environment(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(up_module, "bring_up", lambda home, settings, say: given.append(settings))
    monkeypatch.setenv(URL_VARIABLE, "redis://of-environment")
    start_head(Home(tmp_path / "home"), Settings(), print)  # as prism up and prism serve do
    assert given[0].ray.fault_tolerance_url == "redis://of-environment"


@pytest.fixture
def running(tmp_path):
    """A home in which something seems to run: a head, or a node that has joined one."""

    def make(joined=False, phase="ready", settings=Settings()):
        home = Home(tmp_path / "home")
        home.path.mkdir()
        me = Identity.of(os.getpid())
        home.write_supervisor(SupervisorState(me.pid, me.started_s, phase))
        Boot(str(home), "", "", "redis://x", "/a", "127.0.0.1:1", "a", "w", 8123, 2, settings).write(home.boot_file)
        (JOINED.write(home.join_file) if joined else home.head_file.touch())
        return home

    return make


def stays_up(home, *arguments):
    done = CliRunner().invoke(cli, ["up", "--home", str(home.path), "--json", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)["already_up"]


def test_a_head_that_runs_is_not_asked_in_vain_to_join_another(running, tmp_path):
    home = running()
    JOINED.write(tmp_path / "join.json")
    for arguments in (("--join", str(tmp_path / "join.json")), ("--address", "127.0.0.1:1")):
        assert "a head runs in" in up(home, *arguments)
    assert stays_up(home)


def test_a_node_that_runs_stays_in_its_cluster_and_says_so_where_another_is_meant(running, tmp_path):
    home = running(joined=True)
    assert (
        stays_up(home) and stays_up(home, "--join", str(home.join_file)) and stays_up(home, "--address", "127.0.0.1:1")
    )
    assert "has joined the cluster at 127.0.0.1:1, not this one at 127.0.0.2:1" in up(home, "--address", "127.0.0.2:1")
    replace(JOINED, wire_secret="another").write(tmp_path / "join.json")
    assert "has joined the cluster at" in up(home, "--join", str(tmp_path / "join.json"))


def test_what_runs_is_not_asked_in_vain_for_other_settings(running, tmp_path):
    home = running(settings=Settings(http=HttpSettings(port=0)))
    file = tmp_path / "settings.yaml"
    file.write_text("gateway: {replicas: 1}\n")
    assert stays_up(home, "--http-port", "8123", "--config", str(file)) and stays_up(home, "--http-port", "0")
    file.write_text("gateway: {replicas: 2}\nlimits: {cpus: 3}\n")
    told = up(home, "--http-port", "8124", "--config", str(file))
    assert "with another http.port, gateway.replicas, limits.cpus; to change that: prism down" in told


def test_a_node_takes_its_gateways_settings_from_the_head(running, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("gateway: {replicas: 2}\n")
    assert stays_up(running(joined=True), "--config", str(file))


@pytest.mark.parametrize("phase", ["draining", "stopping"])
def test_what_is_about_to_end_is_not_called_up(running, phase):
    assert f"Prism is {phase} in" in up(running(phase=phase))


def test_what_is_only_starting_is_left_to_whoever_started_it(running):
    home = running(phase="starting")
    home.boot_file.unlink()
    assert "Prism is starting in" in up(home)
    join = home.path / "other.json"
    JOINED.write(join)
    assert "Prism is starting in" in up(home, "--join", str(join))
    assert not home.join_file.exists()
