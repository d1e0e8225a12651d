import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.search import Found, SearchPolicy, Trial, Try, open_limit


def search(capacity, policy, valid_up_to=float("inf"), flaky=()):
    """Run the policy against a server that keeps its objective up to `capacity`; `flaky` trials fail regardless."""
    trials = []
    while isinstance(step := policy.decide(trials), Try):
        passed = step.rate <= min(capacity, valid_up_to) and len(trials) not in flaky
        trials.append(Trial(step.rate, len(trials), passed, valid=step.rate <= valid_up_to))
    return step, trials


@given(st.floats(2.0, 50_000.0), st.floats(1.0, 100.0))
def test_the_search_ends_within_five_percent_below_the_capacity(capacity, start):
    found, trials = search(capacity, SearchPolicy(start))
    if found.rate is None:
        assert capacity < start / 32
    else:
        assert capacity / 1.06 <= found.rate <= capacity
        assert sum(t.rate == found.rate for t in trials) == 4
    assert len(trials) <= 40


def test_the_first_steps_double():
    _, trials = search(1000, SearchPolicy(100))
    assert [t.rate for t in trials[:5]] == [100, 200, 400, 800, 1600]


def test_a_rate_that_fails_its_confirmation_is_given_up():
    policy = SearchPolicy(100)
    _, steady = search(1000, policy)
    found, trials = search(1000, policy, flaky=(len(steady) - 2,))
    assert found.rate < steady[-1].rate
    assert all(t.passed for t in trials if t.rate == found.rate)


def test_what_limited_the_search_is_said():
    assert search(1000, SearchPolicy(100))[0].limited_by == "the server"
    assert search(1000, SearchPolicy(100), valid_up_to=500)[0].limited_by == "the generator"
    assert "bound of 400/s" in search(1000, SearchPolicy(100, max_rate=400))[0].limited_by


def test_a_server_that_keeps_no_rate_is_reported_as_such():
    found, _ = search(0.1, SearchPolicy(100))
    assert found == Found(None, "the server")


def test_a_backlog_is_more_than_twice_what_the_objective_explains():
    assert open_limit(1000, 0.05) == pytest.approx(100)
    assert open_limit(10, 0.05) == 16
