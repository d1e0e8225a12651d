import math

import numpy as np
import pytest

from loadtest.bench.result import Measurement, Point
from loadtest.bench.summary import TARGETS, summarise, verdicts
from loadtest.measure import percentiles

RAW64 = Point("raw", 64)


def measurement(contestant="prism", work="T", point=RAW64, number=0, **figures):
    latency = percentiles(np.array(figures.pop("latencies_s", [0.001])))
    values = {
        "rps": 1000.0,
        "answers": 5000,
        "failed": 0,
        "errors": {},
        "lag_p99_s": None,
        "cpu_ms": 0.03,
        "idle_cpu_ms": 0.0,
        "cpu_ms_by_kind": {"gateway": 0.02},
        "server_cores": 1.0,
        "generator_cores": 0.5,
        "other_share": 0.0,
        "stolen_share": 0.0,
        **figures,
    }
    return Measurement(contestant, work, number, point, latency=latency, **values)


def test_a_row_holds_the_medians_over_rounds_and_the_extremes():
    found = summarise(
        measurement(number=n, rps=rps, cpu_ms=cpu, latencies_s=[p50])
        for n, (rps, cpu, p50) in enumerate([(900, 0.05, 0.003), (1000, 0.03, 0.002), (10, 0.04, 0.009)])
    )
    (row,) = found
    assert (row.rounds, row.rps, row.rps_least, row.rps_most) == (3, 900, 10, 1000)
    assert (row.cpu_ms, row.cpu_ms_least) == (0.04, 0.03)
    assert row.p50_ms == pytest.approx(3.0)


def test_failures_of_all_rounds_are_added_and_not_hidden_by_the_median():
    (row,) = summarise([measurement(failed=0), measurement(failed=0), measurement(failed=7)])
    assert row.failed == 7


def test_servers_works_formats_and_rates_are_kept_apart():
    rows = summarise(
        [
            measurement(),
            measurement("mosec"),
            measurement(work="M"),
            measurement(point=Point("binary", 64)),
            measurement(point=Point("raw", 64, 300.0)),
        ]
    )
    assert len(rows) == 5 and all(row.rounds == 1 for row in rows)


def test_a_kind_of_process_that_was_missing_in_a_round_counts_as_nothing_there():
    (row,) = summarise([measurement(cpu_ms_by_kind={"a": 1.0, "b": 1.0}), measurement(cpu_ms_by_kind={"a": 3.0})])
    assert row.cpu_ms_by_kind == {"a": 2.0, "b": 0.5}


def test_what_the_server_uses_when_idle_is_taken_off_once():
    (row,) = summarise([measurement(cpu_ms=2.0, idle_cpu_ms=0.2)])
    assert row.net_cpu_ms == pytest.approx(1.8)


def test_a_load_without_a_single_answer_has_no_latency():
    (row,) = summarise([measurement(latencies_s=[], failed=10)])
    assert math.isnan(row.p50_ms)


def test_a_target_is_missed_where_requests_failed_however_fast_the_others_were():
    def cpu_verdict(**figures):
        found = verdicts(summarise([measurement(**figures)]))
        return next(good for target, _, good in found if target.figure == "cpu_ms")

    assert cpu_verdict(cpu_ms=0.035)
    assert not cpu_verdict(cpu_ms=0.036)
    assert not cpu_verdict(cpu_ms=0.02, failed=1)


def test_targets_are_prisms_alone():
    assert verdicts(summarise([measurement("mosec")])) == ()
    assert len({(t.work, t.format, t.connections, t.figure) for t in TARGETS}) == len(TARGETS)
