"""Locust in real processes against a small server."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.errors import InvalidRequest, ModelNotFound, OperatorError
from loadtest import run
from loadtest.scenario import scenario_from

pytestmark = pytest.mark.integration
SERVER = Path(__file__).with_name("oip_server.py")


@contextmanager
def server(delay_s=0.003, stall_at_s=0.0, stall_s=0.0):
    process = subprocess.Popen(
        [sys.executable, str(SERVER), str(delay_s), str(stall_at_s), str(stall_s)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def scenario(duration_s=3.0, rate=60, **changes):
    raw = {
        "rate": rate,
        "warmup_s": 0.5,
        "phases": [{"name": "only", "duration_s": duration_s}],
        "objective": "p99<1s",
        "targets": [{"model": "m"}],
    }
    return scenario_from({**raw, **changes}, "test", Path("."))


def adds_up(counts):
    return counts.offered == counts.answered + counts.failed + counts.dropped


def test_a_stall_of_two_seconds_shows_in_p99_although_few_requests_were_in_flight():
    with server(stall_at_s=2.0, stall_s=2.0) as host:
        result = run(scenario(duration_s=6.0), host)
    counts = result.total.counts
    # A third of all requests were due during the stall and waited for its end.
    assert 1.7 < result.total.p99_s < 2.3
    assert result.total.latency.p90_s > 0.8
    assert result.total.p50_s < 0.2
    assert result.verdict.status == "missed"
    assert adds_up(counts) and counts.answered == counts.offered
    assert result.total.lag.p99_s < 0.1
    assert max(result.timeline.in_flight) > 60


def test_two_processes_share_one_schedule_and_the_report_is_written(tmp_path):
    seen = []
    with server() as host:
        result = run(
            scenario(generator={"processes": 2}, targets=[{"model": "m", "keys": {"kind": "uniform"}}]),
            host,
            tmp_path / "out",
            lambda progress: seen.append(progress) and None,
        )
    alone = scenario()
    assert result.total.counts.offered == pytest.approx(alone.rate * alone.duration_s, rel=0.25)
    assert adds_up(result.total.counts) and result.total.counts.failed == 0
    assert result.total.counts.versions.keys() == {"1", "2"}
    assert result.total.server.batch_rows == pytest.approx(2.0, abs=0.3)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["verdict"]["status"] == result.verdict.status
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    assert seen and seen[-1].recorded > 0


def test_a_full_generator_drops_counts_and_is_not_believed():
    with server(delay_s=0.5) as host:
        result = run(scenario(generator={"max_in_flight": 4, "connections": 4}), host)
    assert result.total.counts.dropped > 0 and adds_up(result.total.counts)
    assert result.verdict.status == "invalid"


def test_requests_without_an_answer_in_time_are_timeouts():
    with server(delay_s=30.0) as host:
        result = run(scenario(duration_s=1.0, generator={"timeout_s": 1.0}), host)
    assert result.total.counts.answered == 0 and adds_up(result.total.counts)
    assert result.total.counts.errors == {"timeout": result.total.counts.offered}


def test_a_run_can_be_stopped_and_still_adds_up():
    with server(delay_s=0.05) as host:
        result = run(scenario(duration_s=60.0), host, on_progress=lambda progress: progress.t_s > 1.5)
    assert result.total.duration_s < 5.0
    assert adds_up(result.total.counts) and result.total.counts.answered > 20


def test_wrong_targets_are_one_clear_line():
    with server() as host:
        with pytest.raises(ModelNotFound, match="/v2/models/nope: unknown model"):
            run(scenario(targets=[{"model": "nope"}]), host)
        with pytest.raises(InvalidRequest, match="BYTES and cannot be generated; give a sample"):
            run(scenario(targets=[{"model": "text"}]), host)
    with pytest.raises(OperatorError, match="nothing answers at"):
        run(scenario(), host)
