import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from cluster.errors import InvalidRequest
from loadtest.arrivals import PATTERNS, Gamma, Replay
from loadtest.calls import calls_for, check_host
from loadtest.events import TAKES
from loadtest.objective import Objective, samples_needed
from loadtest.plan import Plan, plan
from loadtest.scenario import LoadTarget, find, read_scenario, scenario_from, shipped

RAW = {
    "rate": 50,
    "phases": [{"pattern": "gamma", "cv": 2, "duration_s": 4}],
    "objective": "p99<50ms, errors<0.1%",
    "targets": [{"model": "m"}],
    "warmup_s": 0,
}
METADATA = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]}


def scenario(**changes):
    return scenario_from({**RAW, **changes}, "test", Path("."))


def fetch(path):
    return METADATA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tragets": []}, r"scenario\.tragets: unknown; expected one of rate, targets"),
        ({"phases": [{"duration_s": 1, "tims": 2}]}, r"phases\[0\]\.tims: unknown; expected one of times"),
        ({"phases": [{"pattern": "poison", "duration_s": 1}]}, r"phases\[0\]\.pattern: expected one of constant"),
        ({"phases": [{"pattern": "poisson"}]}, r"phases\[0\]\.duration_s: expected seconds above 0, got None"),
        ({"phases": [{"duration_s": 1, "times": 0}]}, r"phases\[0\]\.times: expected a number above 0, got 0"),
        ({"phases": []}, r"phases: expected a list with at least one"),
        ({"targets": [{"modell": "m"}]}, r"scenario\.targets\[0\]\.modell: unknown"),
        ({"targets": [{"model": "m", "encoding": "xml"}]}, r"scenario\.targets\[0\]\.encoding: .*xml"),
        ({"targets": [{"model": "m", "keys": {"kind": "zipf", "n": 1}}]}, r"targets\[0\]\.keys\.n: unknown"),
        ({"objective": "p99<fast"}, r"objective: expected bounds such as p99<50ms"),
        ({"rate": -1}, r"rate: expected a number above 0"),
        ({"rate": "fast"}, r"scenario\.rate: Expected float, got str"),
        ({"generator": {"processes": 0}}, r"processes"),
    ],
)
def test_a_wrong_field_is_named(change, message):
    with pytest.raises(InvalidRequest, match=message):
        scenario(**change)


def test_every_shipped_scenario_can_be_read_and_states_what_it_is_for():
    assert {"smoke", "step", "burst", "diurnal", "knee", "soak", "canary"} <= set(shipped())
    for name in shipped():
        found = read_scenario(name)
        assert found.about and found.objective.latency and found.duration_s > 0


def test_a_shipped_scenario_is_found_by_name_and_by_its_path_in_a_checkout():
    found = {find(name).resolve() for name in ("smoke", "smoke.yaml", "config/loadtest/smoke.yaml")}
    assert len(found) == 1


def test_the_scenario_in_the_folder_page_can_be_read():
    text = (find("smoke").parent.parent / "README.md").read_text()
    raw = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    assert scenario_from(raw, "page", Path(".")).targets[0].keys.kind == "zipf"
    for name in PATTERNS:
        assert f"`{name}`" in text


def test_the_folder_page_lists_every_shipped_scenario_and_every_action():
    text = (find("smoke").parent.parent / "README.md").read_text()
    rows = {name: row for row in text.splitlines() if (name := row.partition("`")[2].partition("`")[0]) in shipped()}
    assert rows.keys() == set(shipped())
    for name, row in rows.items():
        assert f"| {read_scenario(name).duration_s:g} |" in row, row
    assert all(f"`{action}`" in text for action in TAKES)


def test_an_unknown_scenario_lists_those_that_ship():
    with pytest.raises(InvalidRequest, match="no file nope, and none of burst, canary"):
        find("nope")


def test_the_command_line_replaces_single_values():
    changed = scenario().adjusted(rate=7, duration_s=8, model="other@stable", seed=9, processes=2)
    assert (changed.rate, changed.duration_s, changed.seed, changed.generator.processes) == (7, 8, 9, 2)
    assert changed.targets[0].model == "other@stable"
    assert changed.phases[0].arrivals == Gamma(2)
    assert scenario().adjusted() == scenario()


def test_a_replay_keeps_the_rate_of_its_file():
    replay = scenario(phases=[{"pattern": "replay", "file": "t.csv", "duration_s": 1}])
    assert replay.phases[0].arrivals == Replay("t.csv")
    with pytest.raises(InvalidRequest, match="rate: a replayed file has its own"):
        replay.adjusted(rate=5)


def test_objectives_are_read_as_they_are_written():
    found = Objective.parse(["p99<50ms", "p50 < 1.5ms", "errors<0.1%"])
    assert [(b.percentile, b.limit_s) for b in found.latency] == [(99, 0.05), (50, 0.0015)]
    assert found.max_error_share == pytest.approx(0.001) and found.limit_s == 0.05
    assert Objective.parse(str(found).replace("errors<=", "errors<")) == found


def test_the_sample_size_for_a_percentile_is_the_known_one():
    assert (samples_needed(99), samples_needed(90)) == (459, 44)


def test_the_same_scenario_and_seed_give_the_same_plan():
    one, two = plan(scenario(), "http://h", fetch), plan(scenario(), "http://h", fetch)
    assert np.array_equal(one.schedule.due_s, two.schedule.due_s) and one.calls == two.calls
    other = plan(scenario().adjusted(seed=2), "http://h", fetch)
    assert not np.array_equal(one.schedule.due_s, other.schedule.due_s)


def test_a_plan_is_the_same_after_it_was_written_and_read(tmp_path):
    made = plan(scenario(targets=[{"model": "m", "keys": {"kind": "zipf"}}]), "http://h", fetch)
    made.write(tmp_path / "plan")
    back = Plan.read(tmp_path / "plan")
    assert back.calls == made.calls and back.schedule.windows == made.schedule.windows
    for name in ("call", "key"):
        assert np.array_equal(getattr(back, name), getattr(made, name))
    assert np.array_equal(back.schedule.due_s, made.schedule.due_s)
    assert (back.loop, back.timeout_s, back.max_in_flight) == (made.loop, made.timeout_s, made.max_in_flight)


def test_targets_share_requests_by_weight_and_keys_are_skewed_as_asked():
    made = plan(
        scenario(
            rate=2000,
            targets=[
                {"model": "a", "weight": 3, "variants": 1, "keys": {"kind": "zipf", "count": 100, "exponent": 1.2}},
                {"model": "b:2", "variants": 1},
            ],
        ),
        "http://h",
        fetch,
    )
    share = np.mean(made.call == 0)
    assert share == pytest.approx(0.75, abs=0.03)
    assert np.all(made.key[made.call == 1] == -1)
    counts = np.bincount(made.key[made.call == 0], minlength=100)
    assert counts[0] > 5 * counts[50]
    assert made.calls[1].path == "/v2/models/b/versions/2/infer"


@pytest.mark.parametrize("encoding", ["json", "binary", "raw"])
def test_bodies_hold_the_sample_in_every_encoding(tmp_path, encoding):
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "s.npz", x=rows)
    target = LoadTarget(model="m", encoding=encoding, sample=str(tmp_path / "s.npz"), variants=3)
    calls = calls_for(target, fetch, seed=1)
    assert len(calls) == 3
    for row, call in zip(rows, calls, strict=True):
        if encoding == "json":
            assert b'"data":[' in call.body and str(row.tolist()).replace(" ", "").encode() in call.body
        else:
            head = int(call.headers["Inference-Header-Content-Length"])
            assert call.body[head:] == row.tobytes()
            assert (head == 0) == (encoding == "raw")


def test_bytes_need_a_sample_and_free_dimensions_need_a_shape():
    text = {"inputs": [{"name": "t", "datatype": "BYTES", "shape": [-1, 1]}]}
    free = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [-1, -1]}]}
    with pytest.raises(InvalidRequest, match="input 't' is BYTES and cannot be generated; give a sample"):
        calls_for(LoadTarget(model="m"), lambda path: text, 1)
    with pytest.raises(InvalidRequest, match="input 'x' has free dimensions"):
        calls_for(LoadTarget(model="m"), lambda path: free, 1)
    assert calls_for(LoadTarget(model="m", shapes={"x": [7]}), lambda path: free, 1)[0].body
    with pytest.raises(InvalidRequest, match=r"shapes\.y: model m has inputs x"):
        calls_for(LoadTarget(model="m", shapes={"y": [7]}), lambda path: free, 1)


def test_text_samples_become_bytes_tensors(tmp_path):
    np.savez(tmp_path / "s.npz", t=np.array([["hé"]]))
    text = {"inputs": [{"name": "t", "datatype": "BYTES", "shape": [-1, 1]}]}
    call = calls_for(LoadTarget(model="m", sample=str(tmp_path / "s.npz")), lambda path: text, 1)[0]
    assert call.body.endswith(b"\x03\x00\x00\x00h\xc3\xa9")


@pytest.mark.parametrize("host", ["localhost:8000", "ftp://h", "http://", ""])
def test_a_host_is_a_url(host):
    with pytest.raises(InvalidRequest, match="host: expected a URL"):
        check_host(host)
