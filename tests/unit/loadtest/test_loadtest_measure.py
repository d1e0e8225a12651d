import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.gate import Generation, Thresholds, flaws, judge
from loadtest.measure import (
    bound_value,
    completed_in,
    counts,
    distribution,
    judged_until,
    mean_cpu,
    misses,
    percentiles,
    timeline,
    within,
)
from loadtest.objective import Objective
from loadtest.samples import Outcome, Recorder, merge, outcome_of, read_samples
from loadtest.schedule import Window

NAN = float("nan")
OBJECTIVE = Objective.parse("p99<50ms, errors<1%")


def recorded(tmp_path, rows, index=0):
    recorder = Recorder()
    for row in rows:
        recorder.add(*row)
    recorder.write(tmp_path / f"samples-{index}.npz", {"index": index})
    return read_samples(tmp_path / f"samples-{index}.npz")


def ok(due_s, took_s, version="1", lag_s=0.0):
    return (due_s, due_s + lag_s, due_s + took_s, Outcome.OK, version, 0)


def test_rows_survive_writing_and_merging_in_the_order_they_were_due(tmp_path):
    one, about = recorded(tmp_path, [ok(2.0, 0.1, "10"), ok(0.0, 0.1, "2")])
    two, _ = recorded(tmp_path, [ok(1.0, 0.1, "2"), (3.0, NAN, NAN, Outcome.DROPPED, "", 1)], 1)
    both = merge([one, two])
    assert about == {"index": 0}
    assert both.due_s.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert [both.versions[v] for v in both.version] == ["2", "2", "10", ""]
    assert both.versions == ("", "2", "10")


@given(st.lists(st.sampled_from(list(Outcome)), max_size=60))
def test_offered_is_always_answered_plus_failed_plus_dropped(tmp_path_factory, outcomes):
    rows = [(i * 0.1, i * 0.1, i * 0.1 + 0.01, outcome, "", 0) for i, outcome in enumerate(outcomes)]
    samples, _ = recorded(tmp_path_factory.mktemp("s"), rows)
    found = counts(samples, 0.05)
    assert found.offered == len(outcomes) == found.answered + found.failed + found.dropped
    assert sum(found.errors.values()) == found.failed + found.dropped


def test_percentiles_are_values_that_occurred_and_are_not_rounded():
    values = np.array([0.00012, 0.0341, 0.0347, 1.0493])
    found = percentiles(values)
    assert (found.p50_s, found.p99_s, found.max_s, found.count) == (0.0341, 1.0493, 1.0493, 4)
    assert percentiles(np.empty(0)).p99_s is None


def test_latency_counts_from_the_due_time_and_service_from_sending(tmp_path):
    samples, _ = recorded(tmp_path, [ok(1.0, 0.5, lag_s=0.2)])
    assert samples.latency_s[0] == pytest.approx(0.5)
    assert samples.service_s[0] == pytest.approx(0.3)
    assert samples.lag_s[0] == pytest.approx(0.2)


def test_a_request_without_an_answer_is_not_a_fast_one(tmp_path):
    rows = [ok(i * 0.01, 0.01) for i in range(98)]
    rows += [(1.0, 1.0, 1.001, Outcome.HTTP_429, "", 0), (1.1, NAN, NAN, Outcome.DROPPED, "", 0)]
    samples, _ = recorded(tmp_path, rows)
    assert bound_value(samples, OBJECTIVE.latency[0]) == float("inf")
    assert [miss.split(":")[0] for miss in misses(samples, OBJECTIVE)] == ["p99<50ms", "errors<=1%"]
    assert misses(samples, Objective.parse("p90<50ms, errors<2%")) == []


def test_goodput_counts_only_answers_within_the_limit(tmp_path):
    samples, _ = recorded(tmp_path, [ok(0, 0.01), ok(1, 0.2), (2, 2, 2.001, Outcome.HTTP_503, "", 0)])
    found = counts(samples, 0.05)
    assert (found.good, found.answered, found.failed, found.errors) == (1, 2, 1, {"503": 1})


def test_an_answer_belongs_to_the_second_it_arrived_in_and_its_latency_to_the_one_it_was_due_in(tmp_path):
    samples, _ = recorded(tmp_path, [ok(0.5, 0.1, "1"), ok(0.6, 1.9, "2"), (1.2, NAN, NAN, Outcome.DROPPED, "", 0)])
    line = timeline(samples, 3.0)
    assert line.offered == (2, 1, 0)
    assert line.completed == (1, 0, 1)
    assert line.failed == (0, 1, 0)
    assert line.in_flight == (1, 1, 0)
    assert line.p99_s[0] == pytest.approx(1.9) and line.p99_s[1] is None
    assert line.versions == {"1": (1, 0, 0), "2": (0, 0, 1)}
    window = Window("a", 0.0, 1.0)
    assert len(within(samples, window)) == 2 and completed_in(samples, window) == 1


def test_the_tail_ends_with_the_slowest_answer():
    values, shares = distribution(np.arange(1, 1001) / 1000)
    assert values[-1] == 1.0 or shares[-1] == pytest.approx(0.001)
    assert list(values) == sorted(values) and list(shares) == sorted(shares, reverse=True)
    assert distribution(np.empty(0)) == ((), ())


def test_the_busiest_process_counts_and_the_warm_up_does_not():
    windows = [Window("warm-up", 0, 2, measured=False), Window("a", 2, 4)]
    assert mean_cpu([[0.9, 0.9, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]], windows) == pytest.approx(0.3)
    assert mean_cpu([], windows) is None


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "ok"), (204, "ok"), (400, "4xx"), (404, "4xx"), (429, "429"), (500, "5xx"), (503, "503"), (504, "504")],
)
def test_answers_are_told_apart_by_status(status, outcome):
    assert outcome_of(status).label == outcome


def generation(**changes):
    fields = {"loop": "open", "offered": 1000, "sent": 1000, "dropped": 0, "lag_p99_s": 0.001, "cpu": 0.2}
    return Generation(**{**fields, **changes})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"lag_p99_s": 0.006}, "sent late"),
        ({"dropped": 1}, "dropped"),
        ({"sent": 980}, "cannot reach this rate"),
        ({"cpu": 0.71}, "of a core"),
        ({"lost_processes": 1}, "left no samples"),
        ({"offered": 0, "sent": 0}, "no request"),
    ],
)
def test_a_generator_that_was_late_full_or_starved_makes_the_run_invalid(change, word):
    verdict = judge(generation(**change), [], OBJECTIVE)
    assert verdict.status == "invalid" and verdict.exit_code == 2
    assert any(word in reason for reason in verdict.reasons)


def test_a_loose_objective_allows_more_lag():
    loose = Objective.parse("p99<1s")
    assert flaws(generation(lag_p99_s=0.09), loose, Thresholds()) == []
    assert flaws(generation(lag_p99_s=0.11), loose, Thresholds())


def test_a_missed_objective_is_told_apart_from_an_invalid_run():
    assert judge(generation(), [], OBJECTIVE).exit_code == 0
    missed = judge(generation(), ["p99<50ms: 60 ms"], OBJECTIVE)
    assert (missed.status, missed.exit_code) == ("missed", 1)
    both = judge(generation(dropped=5), ["p99<50ms: 60 ms"], OBJECTIVE)
    assert both.status == "invalid" and "p99<50ms: 60 ms" in both.notes


def test_a_closed_loop_and_too_few_requests_are_pointed_out():
    notes = judge(generation(loop="closed", offered=100, sent=100), [], OBJECTIVE).notes
    assert any("closed loop" in note for note in notes) and any("459 are needed" in note for note in notes)


def test_what_the_end_of_a_run_cut_off_is_not_judged_but_a_request_nobody_answered_is(tmp_path):
    open_at_the_end = (9.8, 9.8, NAN, Outcome.UNANSWERED, "", 0)
    stuck = (2.0, 2.0, NAN, Outcome.UNANSWERED, "", 0)
    samples, _ = recorded(tmp_path, [stuck, ok(5.0, 0.1), ok(9.0, 0.1), open_at_the_end])
    assert judged_until(samples, 10.0, patience_s=1.0) == 9.8
    assert judged_until(samples.only(samples.ok), 10.0, patience_s=1.0) == 10.0


@pytest.mark.parametrize("offered", [0, 100])
def test_a_run_that_was_stopped_says_when(offered):
    made = Generation("open", offered, offered, 0, 0.001, 0.1, planned_s=60.0, stopped_s=3.25)
    verdict = judge(made, [], OBJECTIVE)
    assert "stopped after 3.2 s of 60 s" in verdict.notes
    assert verdict.reasons == (() if offered else ("it was stopped before anything was measured",))
