import pytest

from cluster.errors import OperatorError
from loadtest.cold_start import Wake, medians, wait_until, wake_of

START = {"replica": "r", "steps": {"process": 2.0, "load": 0.5}, "ready_s": 1003.0, "seen_after_s": 0.2}


def test_the_parts_of_a_request_that_woke_a_version_add_up_to_it():
    found = wake_of(1000.0, 1003.3, START)
    assert found == Wake(3.3, 0.5, {"process": 2.0, "load": 0.5}, 0.2, 0.3)
    assert found.ordered_s + sum(found.steps.values()) + found.answered_s == pytest.approx(found.request_s)


def test_a_gateway_that_did_not_see_the_replica_come_says_nothing_of_the_list():
    assert wake_of(1000.0, 1003.3, {**START, "seen_after_s": None}).listed_s is None


def test_medians_are_those_of_each_part():
    wakes = [wake_of(1000.0 - late, 1003.3 + 2 * late, START) for late in (0.0, 1.0, 5.0)]
    assert medians(wakes) == {"ordered": 1.5, "process": 2.0, "load": 0.5, "answered": 2.3, "the request": 6.3}


def test_a_gateway_that_does_not_answer_is_one_line_with_what_was_waited_for():
    with pytest.raises(OperatorError, match=r"m: not asleep within 0\.3 s: .*refused"):
        wait_until("asleep", lambda version: True, 1, "m", 0.3)
