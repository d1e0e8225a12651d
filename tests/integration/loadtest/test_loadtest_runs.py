"""Locust in real processes against a small server."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.errors import InvalidRequest, ModelNotFound, OperatorError
from loadtest import run
from loadtest.samples import read_samples
from loadtest.scenario import read_scenario, scenario_from
from loadtest.schedule import schedule
from running import PRISM

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


@pytest.mark.parametrize(("processes", "loop"), [(1, "open"), (2, "open"), (1, "closed")])
def test_a_run_can_be_stopped_and_still_adds_up(processes, loop):
    # Many arrivals, so that an interrupt may find the generator in the middle of its own work.
    with server(delay_s=0.05) as host:
        result = run(
            scenario(duration_s=60.0, rate=300, generator={"processes": processes}, loop=loop, users=20),
            host,
            on_progress=lambda progress: progress.t_s > 1.5,
        )
    assert result.total.duration_s < 20.0
    assert adds_up(result.total.counts) and result.total.counts.answered > 20
    # What the end of the run cut off is no fault of the server; a busy machine may keep a few open for longer.
    assert result.total.counts.failed <= 0.1 * result.total.counts.offered
    assert any("stopped after" in note for note in (*result.verdict.reasons, *result.verdict.notes))


@pytest.mark.parametrize("after_s", [0.0, 1.0, 2.0])
def test_a_run_stopped_before_it_began_says_so(after_s):
    began_s = time.monotonic()
    with server() as host:
        try:
            result = run(
                scenario(rate=1e-3, duration_s=60.0),
                host,
                on_progress=lambda progress: time.monotonic() - began_s > after_s,
            )
        except OperatorError as error:
            assert error.message == "loadtest: stopped before the first request was due; nothing was recorded"
        else:  # a request of the warm-up was due before
            assert result.total.counts.offered == 0
            assert result.verdict.reasons == ("it was stopped before anything was measured",)


def command_line(host, out):
    arguments = ["loadtest", "--scenario", "smoke", "--model", "m", "--rate", "100", "--duration", "60"]
    return subprocess.Popen(
        [PRISM, *arguments, "--host", host, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(out.parent)},  # a command that is killed leaves its folder
    )


def locust_of(process, timeout_s=30.0):
    """The Locust that `prism loadtest` runs, once it sends requests."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        for child in psutil.Process(process.pid).children():
            if any(Path(file.path).name.startswith("progress-") for file in child.open_files()):
                return child
        time.sleep(0.1)
    raise AssertionError("Locust did not start")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_reports_what_it_has(tmp_path, number):
    with server() as host, command_line(host, tmp_path / "out") as process:
        locust_of(process)
        time.sleep(4.0)  # past the warm-up
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
    assert "stopped after" in printed and "Traceback" not in printed
    assert json.loads((tmp_path / "out" / "result.json").read_text())["total"]["counts"]["answered"] > 0


def test_locust_does_not_outlive_the_command_that_started_it(tmp_path):
    with server() as host, command_line(host, tmp_path / "out") as process:
        locust = locust_of(process)
        process.kill()
        process.communicate(timeout=60)
        assert locust.wait(timeout=30) is not None or not locust.is_running()


def locust(host, folder, *arguments):
    """Plain Locust with the shipped locustfile, as a person would start it; the samples are for us."""
    file = Path(__file__).parents[3] / "loadtest" / "locustfile.py"
    command = [sys.executable, "-m", "locust", "-f", str(file), "--headless", "--only-summary", "--host", host]
    return subprocess.Popen(
        [*command, "--model", "m", "--samples", str(folder), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")},
    )


def test_processes_of_plain_locust_send_each_arrival_of_the_schedule_exactly_once(tmp_path):
    file = tmp_path / "short.yaml"
    file.write_text(
        "rate: 80\nwarmup_s: 0\nobjective: p99<1s\nphases: [{name: only, duration_s: 4}]\ntargets: [{model: m}]\n"
    )
    with server() as host, locust(host, tmp_path, "--scenario", str(file), "--processes", "2") as process:
        printed, _ = process.communicate(timeout=90)
    assert process.returncode == 0, printed
    parts = [read_samples(part)[0] for part in sorted(tmp_path.glob("samples-*.npz"))]
    shares = [len(part) for part in parts]
    due_s = schedule(read_scenario(str(file)).phases, 80, 1, 0.0).due_s
    assert len(shares) == 2 and abs(shares[0] - shares[1]) <= 1
    assert np.array_equal(np.sort(np.concatenate([part.due_s for part in parts])), due_s)
    assert all(part.ok.all() for part in parts)
    assert f"{len(due_s)}     0(0.00%)" in printed, printed  # Locust's own table, added up over its workers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_plain_locust_ends_in_order_when_interrupted(tmp_path, number):
    with server() as host, locust(host, tmp_path, "--scenario", "soak", "--rate", "300") as process:
        until_s = time.monotonic() + 30.0
        while not any(file.stat().st_size for file in tmp_path.glob("progress-*.jsonl")) and time.monotonic() < until_s:
            time.sleep(0.1)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
    assert "Traceback" not in printed and "Aggregated" in printed
    assert len(read_samples(tmp_path / "samples-0.npz")[0]) > 0


def test_wrong_targets_are_one_clear_line():
    with server() as host:
        with pytest.raises(ModelNotFound, match="/v2/models/nope: unknown model"):
            run(scenario(targets=[{"model": "nope"}]), host)
        with pytest.raises(InvalidRequest, match="BYTES and cannot be generated; give a sample"):
            run(scenario(targets=[{"model": "text"}]), host)
    with pytest.raises(OperatorError, match="nothing answers at"):
        run(scenario(), host)
