"""What the endurance run keeps, from a run as if nothing had gone wrong but what each test says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtest.endurance import MODELS, OBJECTIVE_S, by_the_minute, keep, read_kept
from loadtest.plan import plan
from loadtest.report import write_files
from loadtest.result import LoadResult
from loadtest.runs import Recording, summarize
from loadtest.samples import Outcome, Samples
from loadtest.scenario import read_scenario
from loadtest.server_metrics import Snapshot

SECONDS = 100.0
SCENARIO = read_scenario("endurance", duration_s=SECONDS, rate=20, model=",".join(MODELS))
META = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}
PREPARED = plan(SCENARIO, "http://127.0.0.1:1", lambda path: META)
DUE_S = PREPARED.schedule.due_s
FIRST_S = SCENARIO.warmup_s


def run(latency_s=0.02, outcome=Outcome.OK):
    """Result and samples. Replicas: `urgent` has two from second 70 on, `patient` always one; queue: the second.

    Both want two from second 60 on; from 70 on `patient` is granted one.
    """
    count = len(DUE_S)
    samples = Samples(
        due_s=DUE_S,
        sent_s=DUE_S,
        done_s=DUE_S + latency_s,
        outcome=np.broadcast_to(np.asarray(outcome, np.int8), count).copy(),
        version=(1 + np.arange(count) % 2).astype(np.int16),
        call=np.zeros(count, np.int32),
        versions=("", "patient:1", "urgent:1"),
    )
    values = [
        {
            ("prism_replicas", (("model", "urgent"), ("version", "1"))): 1.0 + (t >= 70),
            ("prism_replicas", (("model", "patient"), ("version", "1"))): 1.0,
            ("prism_queue_rows", (("model", "urgent"), ("version", "1"))): float(t),
            ("prism_replicas_wanted", (("model", "urgent"), ("version", "1"))): 1.0 + (t >= 60),
            ("prism_replicas_wanted", (("model", "patient"), ("version", "1"))): 1.0 + (t >= 60),
            ("prism_replicas_granted", (("model", "urgent"), ("version", "1"))): 2.0,
        }
        | ({("prism_replicas_granted", (("model", "patient"), ("version", "1"))): 1.0} if t >= 70 else {})
        for t in range(int(DUE_S[-1]) + 1)
    ]
    snapshots = tuple(Snapshot(1000.5 + t, "g", each) for t, each in enumerate(values))
    recording = Recording(samples, 1000.0, ((0.1,) * 11,), 0, snapshots, None)
    return summarize(SCENARIO, PREPARED, recording, "2026-01-01T00:00:00+00:00"), samples


def test_a_calm_run_has_whole_minutes_and_the_rest_and_nothing_outside():
    first, last = by_the_minute(*run())
    assert (first.start_s, last.start_s) == (FIRST_S, FIRST_S + 60)
    assert first.offered + last.offered == np.sum(DUE_S >= FIRST_S)
    assert first.failed == 0 and first.outside == last.outside == {"patient:1": 0, "urgent:1": 0}
    assert first.p99_s == {"patient:1": pytest.approx(0.02), "urgent:1": pytest.approx(0.02)}


def test_replicas_and_queue_are_those_of_the_minute():
    first, last = by_the_minute(*run())
    assert first.replicas == {"patient:1": (1, 1), "urgent:1": (1, 1)}
    assert last.replicas == {"patient:1": (1, 1), "urgent:1": (1, 2)}
    assert first.queue_rows < 66 <= last.queue_rows


def test_a_version_is_held_in_the_seconds_in_which_it_is_granted_less_than_it_wants():
    first, last = by_the_minute(*run())
    assert first.wanted == {"patient:1": (1, 2), "urgent:1": (1, 2)} and last.wanted["patient:1"] == (2, 2)
    assert first.held_s == {"patient:1": 0, "urgent:1": 0}
    assert last.held_s == {"patient:1": FIRST_S + SECONDS - 70, "urgent:1": 0}


def test_a_second_is_outside_once_for_late_and_for_failed_requests():
    in_10, in_80 = (np.floor(DUE_S) == second for second in (10, 80))
    assert in_10.any() and in_80.any()
    latency_s = np.where(in_10, 1.1 * OBJECTIVE_S, 0.9 * OBJECTIVE_S)
    first, last = by_the_minute(*run(latency_s, np.where(in_80, Outcome.HTTP_503, Outcome.OK)))
    assert (first.outside, first.failed) == ({"patient:1": 1, "urgent:1": 1}, 0)
    assert (last.outside, last.failed) == ({"patient:1": 1, "urgent:1": 1}, in_80.sum())


def test_what_is_kept_can_be_read_again_and_names_no_folder_of_the_run(tmp_path):
    result, samples = run()
    targets = tuple({**each, "sample": "/somewhere/home/sample.npz"} for each in result.load.targets)
    result = replace(result, load=replace(result.load, targets=targets))
    write_files(result, samples, tmp_path / "run")
    page, kept = keep(*read_kept(tmp_path / "run"), tmp_path / "kept")
    assert LoadResult.read(kept).total == result.total
    for file in (page, kept):
        text = file.read_text()
        assert "/somewhere" not in text and str(tmp_path) not in text
    assert "By the minute" in page.read_text() and "replicas urgent:1" in page.read_text()
    assert "held to fewer replicas than it wanted for 35 s" in page.read_text()


def test_the_scenario_lasts_fifteen_minutes_of_bursts_at_two_models():
    found = read_scenario("endurance")
    assert found.duration_s == 900 and len(found.targets) == len(MODELS)
    assert {type(phase.arrivals).__name__ for phase in found.phases} == {"Mmpp"}


def test_the_make_target_runs_it():
    assert "-m loadtest.endurance" in (Path(__file__).parents[3] / "Makefile").read_text()
