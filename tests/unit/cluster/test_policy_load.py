from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.load import Counters, LoadMeter, ReplicaLoad, load_of

REPORT = ReplicaLoad(rows_per_s=50, done_per_s=50, queue_rows=2, backlog_rows=30, capacity_rows_per_s=100)


def test_rates_cover_the_time_since_the_last_reading():
    meter = LoadMeter(Counters(10.0), 100.0, 2.0)
    first = meter.read(Counters(11.0, rows_in=80, rows_done=60, busy_s=0.5), 20, 0)
    second = meter.read(Counters(13.0, rows_in=100, rows_done=100, busy_s=1.5), 0, 0)
    assert (first.rows_per_s, first.done_per_s, first.busy_share, first.queue_rows) == (80, 60, 0.5, 20)
    assert (second.rows_per_s, second.done_per_s, second.busy_share) == (10, 20, 0.5)


def test_a_reading_right_after_another_repeats_its_rates():
    meter = LoadMeter(Counters(10.0), 100.0, 2.0)
    meter.read(Counters(11.0, rows_in=80), 0, 0)
    assert meter.read(Counters(11.001, rows_in=90), 5, 0) == replace(meter.read(Counters(11.002, rows_in=95), 5, 0))
    assert meter.read(Counters(12.0, rows_in=100), 0, 0).rows_per_s == 20


def test_a_backlog_that_was_there_before_the_replica_did_not_grow_with_it():
    meter = LoadMeter(Counters(0.0), 100.0, 2.0)
    assert meter.read(Counters(1.0), 0, 500).backlog_per_s == 0
    assert meter.read(Counters(2.0), 0, 700).backlog_per_s == 200
    assert meter.read(Counters(4.0), 0, 300).backlog_per_s == -200


def test_batches_that_take_twice_as_long_as_measured_halve_the_capacity():
    meter = LoadMeter(Counters(0.0), 100.0, 2.0)
    load = meter.read(Counters(1.0, ended_s=0.8, expected_s=0.4), 0, 0)
    assert load.capacity_rows_per_s == pytest.approx(50.0)


@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 5), st.floats(0, 5)), max_size=20))
def test_a_reading_of_speed_cannot_run_away(steps):
    meter, now = LoadMeter(Counters(0.0), 100.0, 2.0), Counters(0.0)
    for elapsed_s, ended_s, expected_s in steps:
        now = Counters(now.at_s + elapsed_s, ended_s=now.ended_s + ended_s, expected_s=now.expected_s + expected_s)
        assert 5.0 <= meter.read(now, 0, 0).capacity_rows_per_s <= 200.0


def test_what_waits_at_gateways_counts_once_and_its_growth_is_part_of_what_comes():
    load = load_of([replace(REPORT, backlog_per_s=40), replace(REPORT, backlog_rows=35, backlog_per_s=60)], 2, False)
    assert load.backlog_rows == 35 and load.queue_rows == 4
    assert load.rows_per_s == 150


def test_no_report_is_no_load():
    assert load_of([], 2, True).replicas == 0 and load_of([], 2, True).wanted
