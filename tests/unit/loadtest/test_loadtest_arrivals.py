import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from loadtest.arrivals import (
    PATTERNS,
    Constant,
    Diurnal,
    Gamma,
    Mmpp,
    Poisson,
    Ramp,
    Replay,
    Spike,
    Step,
)
from loadtest.schedule import Phase, dispersion, gap_cv, schedule, thin

STATIONARY = [Constant(), Poisson(), Gamma(0.5), Gamma(2.0), Gamma(4.0)]
MOVING = [Mmpp(), Diurnal(), Diurnal(noise=0.3, spikes=(Spike(100, 30, 3),)), Step(), Ramp()]


def due(pattern, rate=100.0, duration_s=300.0, seed=7):
    return pattern.due(rate, duration_s, np.random.default_rng(seed))


@pytest.mark.parametrize("pattern", STATIONARY + MOVING, ids=repr)
def test_due_times_are_sorted_inside_the_duration_and_repeat_with_the_seed(pattern):
    times = due(pattern)
    assert times.dtype == np.float64
    assert np.all(np.diff(times) >= 0) and times[0] >= 0 and times[-1] < 300
    assert np.array_equal(times, due(pattern))


@pytest.mark.parametrize("pattern", [p for p in STATIONARY + MOVING if not isinstance(p, Constant)], ids=repr)
def test_another_seed_gives_other_times(pattern):
    assert not np.array_equal(due(pattern), due(pattern, seed=8))


@pytest.mark.parametrize("pattern", STATIONARY, ids=repr)
def test_the_mean_rate_is_the_one_asked_for(pattern):
    assert len(due(pattern, duration_s=600)) / 600 == pytest.approx(100, rel=0.06)


@pytest.mark.parametrize(("cv", "idc"), [(0.5, 0.25), (1.0, 1.0), (2.0, 4.0), (4.0, 16.0)])
def test_gamma_gaps_have_the_variation_asked_for_and_average_out_over_ten_seconds(cv, idc):
    times = due(Gamma(cv), duration_s=3000)
    assert gap_cv(times) == pytest.approx(cv, rel=0.1)
    assert dispersion(times, 3000) == pytest.approx(idc, rel=0.4)


def test_a_rate_that_moves_is_far_more_dispersed_than_bursty_gaps():
    assert dispersion(due(Mmpp(), duration_s=1200), 1200) > 100
    assert dispersion(due(Diurnal(), duration_s=1200), 1200) > 100
    assert dispersion(due(Poisson(), duration_s=1200), 1200) == pytest.approx(1.0, abs=0.4)


def test_a_constant_pattern_is_evenly_spaced():
    assert np.allclose(np.diff(due(Constant(2.0), rate=10, duration_s=5)), 0.05)


def test_steps_have_their_own_rates():
    times = due(Step((1.0, 4.0)), duration_s=200)
    low, high = np.histogram(times, bins=[0, 100, 200])[0]
    assert (low / 100, high / 100) == (pytest.approx(100, rel=0.05), pytest.approx(400, rel=0.05))


def test_a_ramp_ends_higher_than_it_starts():
    first, last = np.histogram(due(Ramp(0.0, 2.0), duration_s=200), bins=[0, 100, 200])[0]
    assert last / first == pytest.approx(3.0, rel=0.1)


def test_a_spike_multiplies_the_rate_while_it_lasts():
    plain = due(Diurnal(amplitude=0.0))
    spiked = due(Diurnal(amplitude=0.0, spikes=(Spike(100, 50, 3),)))
    assert np.histogram(spiked, bins=[100, 150])[0][0] / np.histogram(plain, bins=[100, 150])[0][0] == pytest.approx(
        3, rel=0.1
    )


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(STATIONARY + MOVING), st.floats(0.5, 300), st.floats(0.2, 50), st.integers(0, 2**32))
def test_every_pattern_keeps_inside_any_duration(pattern, rate, duration_s, seed):
    times = pattern.due(rate, duration_s, np.random.default_rng(seed))
    assert np.all(np.diff(times) >= 0)
    assert len(times) == 0 or (times[0] >= 0 and times[-1] < duration_s)


def test_a_recording_is_replayed_with_its_gaps_and_can_be_scaled(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("t_s\n" + "\n".join(str(5 + i * 0.5) for i in range(100)))
    assert np.allclose(np.diff(due(Replay(str(file)))), 0.5)
    assert np.allclose(np.diff(due(Replay(str(file), scale_time=0.1))), 0.05)
    assert len(due(Replay(str(file), scale_rate=0.5))) == pytest.approx(50, abs=20)
    assert len(due(Replay(str(file), scale_rate=3.0), duration_s=1e4)) == 300


def test_counts_per_minute_are_spread_over_their_minutes(tmp_path):
    file = tmp_path / "trace.csv.gz"
    with gzip.open(file, "wt") as stream:
        stream.write("minute,count\n0,600\n1,60\n")
    counts = np.histogram(due(Replay(str(file))), bins=[0, 59.5, 120])[0]
    assert counts[0] == pytest.approx(600, abs=15) and counts.sum() == 660


def test_a_file_without_the_columns_is_refused(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidRequest, match="expected a column t_s"):
        due(Replay(str(file)))


@pytest.mark.parametrize("bad", [{"times": 0}, {"times": -1}, {"times": float("inf")}])
def test_a_rate_that_is_not_above_zero_is_refused(bad):
    with pytest.raises(InvalidRequest, match="times: expected a number above 0"):
        Poisson(**bad)


@given(st.integers(0, 1000), st.integers(1, 9))
def test_dealing_out_arrivals_gives_each_exactly_one_sender(count, workers):
    dealt = np.concatenate([thin(count, i, workers) for i in range(workers)])
    assert sorted(dealt.tolist()) == list(range(count))


def test_phases_follow_one_another_and_the_warm_up_is_not_measured():
    plan = schedule([Phase("a", 10, Poisson()), Phase("b", 5, Poisson(2))], rate=50, seed=1, warmup_s=3)
    assert [(w.name, w.start_s, w.end_s, w.measured) for w in plan.windows] == [
        ("warm-up", 0, 3, False),
        ("a", 3, 13, True),
        ("b", 13, 18, True),
    ]
    assert np.all(np.diff(plan.due_s) >= 0)
    counts = np.histogram(plan.due_s, bins=[0, 3, 13, 18])[0]
    assert counts == pytest.approx([150, 500, 500], rel=0.25)


def test_changing_one_phase_leaves_the_arrivals_of_the_others():
    one = schedule([Phase("a", 10, Poisson()), Phase("b", 5, Poisson())], 50, seed=1)
    other = schedule([Phase("a", 10, Gamma(3.0)), Phase("b", 5, Poisson())], 50, seed=1)
    assert np.array_equal(one.due_s[one.due_s >= 10], other.due_s[other.due_s >= 10])


def test_all_patterns_can_be_named_in_a_scenario():
    assert set(PATTERNS) == {"constant", "poisson", "gamma", "mmpp", "diurnal", "step", "ramp", "replay"}
