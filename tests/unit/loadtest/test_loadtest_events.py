import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.documents import DeploySettings, ModelDocument, VersionRecord
from cluster.errors import Conflict, InvalidRequest, OperatorError
from cluster.splits import TrafficSplit
from cluster.tensors import Signature, TensorSpec
from loadtest.events import Event, Happened, newest_ready, split_of
from loadtest.gate import Verdict
from loadtest.home_actions import Member, gateways_of, replicas_of, store_of
from loadtest.plan import plan
from loadtest.playback import Playback
from loadtest.report import page
from loadtest.result import LoadResult, with_events
from loadtest.runs import Recording, summarize
from loadtest.samples import Outcome, Samples
from loadtest.scenario import LoadTarget, read_scenario, scenario_from, target_names

RAW = {"rate": 5, "phases": [{"duration_s": 10}], "objective": "p99<1s", "targets": [{"model": "m"}]}
SPEC = TensorSpec("x", "FP32", (-1, 4))


def scenario(*events):
    return scenario_from({**RAW, "events": list(events)}, "test", Path("."))


def document(split="1=100", deployed="123"):
    records = {
        version: VersionRecord(
            version=version,
            uri="",
            digest="",
            signature=Signature((SPEC,), (SPEC,), True, 8),
            format="onnx",
            precision="fp32",
            size_bytes=0,
            created_s=0.0,
            deploy=DeploySettings() if version in deployed else None,
        )
        for version in ("1", "2", "3")
    }
    return ModelDocument("m", records, TrafficSplit.parse(split) if split else None)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"at_s": 1, "action": "explode"}, r"scenario\.events\[0\]\.action: .*explode"),
        ({"at_s": 1, "action": "kill-store", "wen": 1}, r"scenario\.events\[0\]\.wen: unknown; expected one of at_s"),
        ({"action": "kill-store"}, r"scenario\.events\[0\]\.at_s: missing"),
        ({"at_s": -1, "action": "kill-store"}, r"at_s: expected seconds from 0, got -1"),
        ({"at_s": 10, "action": "kill-store"}, r"events\[0\]\.at_s: kill-store at 10 s is after the end: .* 10 s"),
        ({"at_s": 1, "action": "kill-store", "model": "m"}, r"kill-store takes nothing more, not model"),
        ({"at_s": 1, "action": "scale"}, r"min_replicas or max_replicas is missing"),
        ({"at_s": 1, "action": "split"}, r"shares: expected stable=90,newest=10"),
        ({"at_s": 1, "action": "split", "shares": "stable=90,newest=20"}, r"shares must add up to"),
        ({"at_s": 1, "action": "split", "shares": "best=100"}, r"shares: expected stable=90"),
        ({"at_s": 1, "action": "kill-replica", "model": "no/name"}, r"model: expected letters"),
    ],
)
def test_an_event_that_makes_no_sense_is_refused_by_name(event, message):
    with pytest.raises(InvalidRequest, match=message):
        scenario(event)


def test_events_keep_their_place_when_the_phases_are_stretched():
    made = scenario({"at_s": 5, "action": "kill-store"})
    assert made.adjusted(duration_s=100).events[0].at_s == pytest.approx(50)
    assert made.adjusted(duration_s=2).events[0].at_s == pytest.approx(1)


def test_shipped_kills_come_between_the_phases_they_are_compared_by():
    for name in ("replica-killed", "store-killed", "gateway-killed", "canary"):
        found = read_scenario(name)
        ends = {sum(phase.duration_s for phase in found.phases[:i]) for i in range(len(found.phases))}
        assert found.events and {event.at_s for event in found.events} <= ends


def test_words_in_shares_mean_the_version_with_most_traffic_and_the_newest_ready_one():
    ready = frozenset("13")
    assert str(split_of("stable=90,newest=10", document("1=60,2=40"), ready)) == "1=90,3=10"
    assert str(split_of("stable=100", document("1=40,2=60"), ready)) == "2=100"
    assert str(split_of("1=50,3=50", document(), ready)) == "1=50,3=50"
    assert newest_ready(document(), ready) == "3"


def test_a_split_between_one_version_is_refused():
    with pytest.raises(Conflict, match=r"m has one READY version \(1\).*deploy another"):
        split_of("stable=90,newest=10", document(), frozenset("1"))
    with pytest.raises(Conflict, match="m has no READY version"):
        newest_ready(document(), frozenset())


def member(pid, command, started_s=0.0):
    return Member(pid, started_s, command)


MEMBERS = [
    member(1, "python -m cluster.supervisor --home h"),
    member(2, "/bin/valkey-server /run/store.conf"),
    member(3, "ray::ServeReplica:prism-gateway-abc:gateway"),
    member(4, "ray::ServeReplica:model:m:1:replica"),
    member(5, "ray::ServeReplica:model:m:2:replica", 20.0),
    member(6, "ray::ServeReplica:model:m:2:replica", 10.0),
    member(7, "ray::ServeReplica:model:mm:1:replica"),
    member(8, "ray::ServeReplica:prism-controller:controller"),
]


def test_processes_are_told_apart_by_what_they_are():
    assert [m.pid for m in store_of(MEMBERS)] == [2]
    assert [m.pid for m in gateways_of(MEMBERS)] == [3]
    assert [m.pid for m in replicas_of(MEMBERS, "m", None)] == [6, 5, 4]
    assert [m.pid for m in replicas_of(MEMBERS, "m", "1")] == [4]
    assert replicas_of(MEMBERS, "other", None) == []


def test_events_are_done_in_order_and_one_that_fails_says_why():
    done, last = [], threading.Event()

    def do(event):
        if event.action == "kill-gateway":
            raise OperatorError("no gateway runs here")
        done.append(event.action)
        if event.action == "kill-store":
            last.set()
        return f"did {event.action}"

    events = [Event(0.02, "kill-store"), Event(0.0, "kill-replica", "m"), Event(0.01, "kill-gateway")]
    playback = Playback(events, do, warmup_s=0.0)
    with playback:
        playback.saw(-1.0)
        playback.saw(5.0)  # all of them are due
        assert last.wait(10)
    found = playback.happened(time.time() - 5.0)
    assert [h.name for h in found] == ["kill-replica m", "kill-gateway", "kill-store"]
    assert [h.error for h in found] == ["", "no gateway runs here", ""]
    assert found[0].detail == "did kill-replica" and done == ["kill-replica", "kill-store"]
    assert all(0 < h.at_s <= 5.0 for h in found)


def test_events_still_to_come_when_the_run_ends_are_left_out():
    playback = Playback([Event(1000.0, "kill-store")], lambda event: "done", 0.0)
    with playback:
        playback.saw(0.0)
    assert playback.happened(0.0) == ()


def recorded(made):
    """A result in which every request was answered after 10 ms, those of the second target after 20 ms."""
    prepared = plan(made, "http://h", lambda path: {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]})
    due_s, count = prepared.schedule.due_s, len(prepared.schedule.due_s)
    second = np.isin(prepared.call, [call for call, target in enumerate(prepared.target) if target == 1])
    samples = Samples(
        due_s=due_s,
        sent_s=due_s,
        done_s=due_s + np.where(second, 0.02, 0.01),
        outcome=np.full(count, Outcome.OK, dtype=np.int8),
        version=np.where(second, 2, 1).astype(np.int16),
        call=prepared.call,
        versions=("", "a:1", "b:1"),
    )
    recording = Recording(samples, 0.0, ((0.1,) * 20,), 0, (), None)
    return summarize(made, prepared, recording, "2026-01-01T00:00:00+00:00")


def test_each_of_several_targets_has_figures_of_its_own():
    made = scenario_from(
        {**RAW, "rate": 50, "targets": [{"model": "a", "weight": 3}, {"model": "b", "encoding": "json"}]},
        "t",
        Path("."),
    )
    found = recorded(made)
    one, two = found.targets
    assert (one.name, two.name) == ("a", "b")
    assert one.p99_s == pytest.approx(0.01) and two.p99_s == pytest.approx(0.02)
    assert one.counts.offered + two.counts.offered == found.total.counts.offered
    assert two.counts.offered / found.total.counts.offered == pytest.approx(0.25, abs=0.08)
    assert two.counts.versions == {"b:1": two.counts.offered}
    assert recorded(scenario()).targets == ()


def test_targets_of_one_model_are_told_apart_by_how_they_ask():
    targets = [LoadTarget("m"), LoadTarget("m", encoding="json"), LoadTarget("m", encoding="json")]
    assert target_names(targets[:2]) == ["m (binary, rows 1)", "m (json, rows 1)"]
    assert len(set(target_names(targets))) == 3
    assert target_names([LoadTarget("a"), LoadTarget("b")]) == ["a", "b"]


def test_several_models_go_to_the_targets_in_turn():
    made = read_scenario("mixed", model="a, b:2")
    assert [target.model for target in made.targets] == ["a", "b:2", "a"]
    with pytest.raises(InvalidRequest, match=r"model: 2 are given, and scenario smoke has 1 target$"):
        read_scenario("smoke", model="a,b")


def test_a_run_whose_event_was_not_done_is_invalid():
    result = recorded(scenario())
    fine = with_events(result, [Happened(1.0, "kill-store", "killed")])
    assert fine.verdict == result.verdict and fine.events[0].detail == "killed"
    missed = replace(result, verdict=Verdict("missed", ("p99",)))
    broken = with_events(missed, [Happened(1.0, "kill-store", error="none runs")])
    assert broken.verdict == Verdict("invalid", ("event kill-store was not done: none runs",), ("p99",))


def test_events_are_on_the_time_axis_of_the_report_and_in_its_json(tmp_path):
    result = with_events(recorded(scenario()), [Happened(4.0, "kill-store", "killed the store, process 7")])
    html = page(result).render()
    assert html.count("kill-store") >= 2 and "killed the store, process 7" in html
    result.write(tmp_path / "r.json")
    assert LoadResult.read(tmp_path / "r.json") == result
