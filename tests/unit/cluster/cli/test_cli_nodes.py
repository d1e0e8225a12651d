"""`prism drain`, the nodes in `prism status`, and how `prism up` refuses to join."""

import json
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from cluster.artifacts_store import ArtifactStore
from cluster.cli import nodes as nodes_module
from cluster.cli.main import cli
from cluster.cli.nodes import node_facts, nodes_text
from cluster.cli.session import Session
from cluster.errors import OperatorError, ServingError
from cluster.home import Home
from cluster.join import JoinDocument
from cluster.nodes import NodeReport, NodeReports
from cluster.settings import Boot, GatewaySettings, Settings
from cluster.store.memory import MemoryStore

HEAD = NodeReport("aa" * 28, "10.0.0.1", "alpha", head=True, door_port=8000, gateway="RUNNING", total={"CPU": 8.0})
WORKER = NodeReport(
    "bb" * 28, "10.0.0.2", "beta", door_port=8000, gateway="RUNNING", replicas={"m:1": 2},
    total={"CPU": 8.0, "GPU": 1.0}, used={"CPU": 2.0, "GPU": 0.5},
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
    assert len(text) == 1 and "m:1 x2" in text[0] and "0.5/1" in text[0] and "10.0.0.1 (head)" in text[0]


def test_an_old_report_is_shown_as_such():
    facts = node_facts(NodeReports((HEAD,), 1000.0))
    assert "1000 s ago" in nodes_text(facts, 2000.0)[-1]
    assert nodes_text(node_facts(NodeReports()), 2000.0) == []


def up(home, *arguments):
    done = CliRunner().invoke(cli, ["up", "--home", str(home.path), *arguments])
    assert isinstance(done.exception, OperatorError), done.output
    return done.exception.message


def test_up_refuses_to_join_without_the_heads_file_and_to_turn_a_head_or_a_node_into_the_other(tmp_path):
    home = Home(tmp_path / "home")
    assert "copy join.json" in up(home, "--address", "127.0.0.1:1")
    home.path.mkdir()
    JoinDocument("127.0.0.1:1", "redis://x", "/a", "r", "a", "w", GatewaySettings()).write(home.join_file)
    assert "is a node of another cluster" in up(home)
    assert "127.0.0.1:1 does not answer" in up(home, "--address", "127.0.0.1:1")
    home.ray_port_file.write_text("1")
    assert "holds a head's state" in up(home, "--join", str(home.join_file))
