import os
import sys
import time

import gevent
import pytest

from loadtest.alarm import SleepAlarm, TimerAlarm, alarm

KINDS = [SleepAlarm, pytest.param(TimerAlarm, marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux only"))]


@pytest.mark.parametrize("kind", KINDS)
def test_an_alarm_rings_again_and_again_and_never_early(kind):
    clock = kind()
    for _ in range(5):
        at_s = time.perf_counter() + 0.002
        clock.wait_until(at_s)
        assert time.perf_counter() >= at_s - 0.0005  # libev's own clock is a little ahead
    clock.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_moment_that_is_over_lets_the_others_run_and_returns(kind):
    clock, ran = kind(), []
    gevent.spawn(ran.append, 1)
    clock.wait_until(time.perf_counter() - 1.0)
    clock.close()
    assert ran == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_waiting_greenlet_can_be_ended_and_leaves_no_file_open():
    before = len(os.listdir("/proc/self/fd"))
    clock = alarm()
    assert isinstance(clock, TimerAlarm)
    waiting = gevent.spawn(clock.wait_until, time.perf_counter() + 60.0)
    gevent.sleep(0)
    waiting.kill()
    clock.wait_until(time.perf_counter() + 0.001)
    clock.close()
    assert waiting.dead and len(os.listdir("/proc/self/fd")) <= before + 1  # gevent may have opened its own
