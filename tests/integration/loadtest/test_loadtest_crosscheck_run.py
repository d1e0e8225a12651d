"""Our load generator against MLPerf LoadGen, which shares no code with it."""

import json
import subprocess

import pytest
from test_loadtest_runs import scenario, server

from loadtest import run
from loadtest.crosscheck import crosscheck, ours, theirs
from running import PRISM

pytest.importorskip("mlperf_loadgen", reason="LoadGen is not installed: it is in the extra crosscheck")
pytestmark = pytest.mark.integration


def test_both_count_a_stall_from_when_requests_were_due():
    # A fresh server for each: it stalls once. Who waits for answers before sending again would see p99 in milliseconds.
    asked = scenario(duration_s=6.0, rate=60)
    with server(stall_at_s=2.0, stall_s=1.5) as host:
        one = ours(run(asked, host))
    with server(stall_at_s=2.0, stall_s=1.5) as host:
        two = theirs(asked, host, 6.0)
    assert one.failed == two.failed == 0
    assert two.requests == 360
    assert one.latency_s["p99"] > 1.0 and two.latency_s["p99"] > 1.0
    assert one.latency_s["p99"] == pytest.approx(two.latency_s["p99"], rel=0.15)
    assert one.latency_s["p50"] < 0.2 and two.latency_s["p50"] < 0.2


def test_the_two_agree_on_a_steady_server():
    with server(delay_s=0.1) as host:
        found = crosscheck(scenario(rate=40), host, seconds=3.0, rounds=2)
    # On a busy machine p99 of few requests says more about the machine.
    assert found.ours["p50"] > 0.1 and found.theirs["p50"] > 0.1
    assert found.ratios["p50"] == pytest.approx(1.0, abs=0.15)
    assert 0.4 < found.ratios["p99"] < 2.5
    assert not any("failed" in flaw for flaw in found.flaws)


def test_the_command_prints_what_both_saw():
    command = [PRISM, "loadtest", "crosscheck", "--json", "--model", "m", "--rate", "30"]
    with server(delay_s=0.02) as host:
        done = subprocess.run(
            [*command, "--host", host, "--seconds", "2", "--rounds", "1", "--tolerance", "10"],
            capture_output=True,
            text=True,
            timeout=120,
        )
    found = json.loads(done.stdout)
    assert found["agrees"] and done.returncode in (0, 2), done.stderr
    assert found["ours"].keys() == found["theirs"].keys() == {"p50", "p90", "p99"}
