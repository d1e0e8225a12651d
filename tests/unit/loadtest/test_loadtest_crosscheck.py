import pytest

from cluster.errors import OperatorError
from loadtest.crosscheck import Seen, agreement, loadgen_seen, table

LOG = """\
:::MLLOG {"key": "loadgen_version", "value": "6.0.17", "time_ms": 0.01}
not a line of the log
:::MLLOG {"key": "result_query_count", "value": 500, "time_ms": 1.0}
:::MLLOG {"key": "result_50.00_percentile_latency_ns", "value": 11660989, "time_ms": 1.0}
:::MLLOG {"key": "result_90.00_percentile_latency_ns", "value": 19152776, "time_ms": 1.0}
:::MLLOG {"key": "result_99.00_percentile_latency_ns", "value": 59068775, "time_ms": 1.0}
"""


def seen(by, p99_s, failed=0, invalid=()):
    return Seen(by, {"p50": p99_s / 4, "p90": p99_s / 2, "p99": p99_s}, 100, failed, invalid)


def rounds(ours_s, theirs_s, **changes):
    both = [seen("prism", s, **changes) for s in ours_s] + [seen("loadgen", s) for s in theirs_s]
    return agreement(both, 100.0, 10.0, len(ours_s))


def test_the_figures_are_loadgens_own():
    found = loadgen_seen(LOG, 3)
    assert found == Seen("loadgen", {"p50": 0.011660989, "p90": 0.019152776, "p99": 0.059068775}, 500, 3)


def test_a_log_without_figures_is_refused():
    with pytest.raises(OperatorError, match=r"has no 'result_50\.00_percentile_latency_ns'"):
        loadgen_seen(LOG.splitlines()[0], 0)


@pytest.mark.parametrize(("ratio", "agrees"), [(1.14, True), (1.16, False), (1 / 1.14, True), (1 / 1.16, False)])
def test_fifteen_percent_are_allowed_in_either_direction(ratio, agrees):
    assert rounds([0.02 * ratio], [0.02]).agrees is agrees


def test_one_bad_round_does_not_decide():
    found = rounds([0.020, 0.500, 0.021], [0.021, 0.020, 0.022])
    assert found.agrees and found.ours["p99"] == 0.021
    assert table(found)[3] == ["p99", "21.00 ms", "21.00 ms", "1.000"]


def test_failures_and_a_late_generator_are_pointed_out():
    assert rounds([0.02], [0.02]).flaws == ()
    assert rounds([0.02], [0.02], failed=2).flaws == ("prism: 2 of 100 requests failed",)
    assert rounds([0.02, 0.02], [0.02, 0.02], invalid=("sent late",)).flaws == ("sent late",)
