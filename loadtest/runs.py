"""A load test from start to end: ask the server about its models, plan, run Locust beside us, read what it recorded.

Locust runs in processes of its own, so that its patched sockets and its CPU time stay out of the caller's.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import InvalidRequest, OperatorError
from cluster.names import Target
from loadtest.calls import Fetch, check_host, fetch_json
from loadtest.gate import Generation, judge
from loadtest.measure import (
    completed_in,
    counts,
    distribution,
    judged_until,
    mean_cpu,
    misses,
    percentiles,
    timeline,
    within,
)
from loadtest.plan import Plan, plan
from loadtest.playback import Playback
from loadtest.result import Load, LoadResult, PhaseResult, this_machine, with_events
from loadtest.samples import Samples, merge, read_samples
from loadtest.scenario import Scenario, target_names
from loadtest.schedule import Window, dispersion, gap_cv
from loadtest.server_facts import server_facts
from loadtest.server_metrics import MetricsPoller, Snapshot, server_figures, server_timeline

START_LIMIT_S = 60.0  # for Locust to start and connect its workers


@dataclass(frozen=True, slots=True)
class Progress:
    """A run in progress, at least once a second; `t_s` is below 0 until the first request is due."""

    t_s: float
    end_s: float
    phase: str
    offered: int
    recorded: int  # requests that have ended, one way or another
    ok: int
    dropped: int
    in_flight: int


OnProgress = Callable[[Progress], bool | None]  # True: stop the run early


@dataclass(frozen=True, slots=True)
class Recording:
    """What the generators wrote, and when time 0 was (wall clock)."""

    samples: Samples
    epoch_s: float
    cpu: tuple[tuple[float, ...], ...]
    lost_processes: int
    snapshots: tuple[Snapshot, ...]
    stopped_s: float | None  # seconds into the run at which it was stopped early


def run(
    scenario: Scenario,
    host: str,
    out: Path | None = None,
    on_progress: OnProgress | None = None,
    playback: Playback | None = None,
    about_server: dict[str, Any] | None = None,
    fetch: Fetch | None = None,
) -> LoadResult:
    """Run `scenario` against `host` and say what came of it; with `out`, `result.json`, `samples.npz`, `phases.csv`
    and `report.html` are written there.

    Args:
        playback: Carries out the scenario's events, and has checked them.
        about_server: What is known of the server, for the result, besides what it says of itself.
        fetch: Answers for a server that has no metadata; without it, the server is asked.

    Raises: InvalidRequest and ModelNotFound for a scenario that does not fit the server, OperatorError if the server
        cannot be reached or Locust is not installed or fails.
    """
    host = check_host(host)
    if scenario.events and playback is None:
        raise InvalidRequest("events: they need a Prism in a local home; leave them out to load another server")
    fetch = fetch or fetch_json(host)
    prepared = plan(scenario, host, fetch)
    about = {**server_facts(fetch), **(about_server or {})}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="prism-loadtest-") as folder, playback or nullcontext():
        watch = playback.beside(on_progress) if playback else on_progress
        recording = record(prepared, scenario.generator.processes, Path(folder), watch)
    result = replace(summarize(scenario, prepared, recording, started), about_server=about)
    if playback is not None:
        result = with_events(result, playback.happened(recording.epoch_s))
    if out is not None:
        from loadtest.report import write_files  # matplotlib is slow to import and only needed here

        result = write_files(result, recording.samples, out)
    return result


def record(prepared: Plan, processes: int, folder: Path, on_progress: OnProgress | None) -> Recording:
    """Carry out a plan with Locust, in `folder`. Raises: OperatorError."""
    if importlib.util.find_spec("locust") is None:
        raise OperatorError("loadtest: Locust is not installed; pip install 'prism-serving[loadtest]'")
    prepared.write(folder / "plan.msgpack")
    poller = MetricsPoller(prepared.host)
    stopped_s: float | None = None
    with (folder / "locust.log").open("wb") as log:
        process = subprocess.Popen(
            _command(prepared, processes, folder),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")},
            start_new_session=True,  # an interrupt from the keyboard reaches us alone, and we end Locust
        )
        poller.start()
        try:
            stopped_s = _watch(process, prepared, processes, folder, on_progress)
        finally:
            _end(process)
            snapshots = poller.stop()
    parts = [read_samples(file) for file in sorted(folder.glob("samples-*.npz"))]
    if stopped_s is not None and not any(len(samples) for samples, _ in parts):
        raise OperatorError("loadtest: stopped before the first request was due; nothing was recorded")
    if not parts:
        lines = (folder / "locust.log").read_text(errors="replace").strip().splitlines()
        raise OperatorError(f"loadtest: Locust recorded nothing; it said: {lines[-1] if lines else 'nothing'}")
    samples = merge([samples for samples, _ in parts])
    if stopped_s is not None:  # progress is a second old
        stopped_s = float(np.nanmax(samples.sent_s, initial=stopped_s))
    return Recording(
        samples=samples,
        epoch_s=min(about["epoch_s"] for _, about in parts),
        cpu=tuple(tuple(about["cpu"]) for _, about in parts),
        lost_processes=processes - len(parts),
        snapshots=tuple(snapshots),
        stopped_s=stopped_s,
    )


def summarize(scenario: Scenario, prepared: Plan, recording: Recording, started: str) -> LoadResult:
    """The figures and the verdict of a recording."""
    windows = prepared.schedule.windows
    if recording.stopped_s is not None:
        cut_s = judged_until(recording.samples, recording.stopped_s, max(scenario.objective.limit_s or 0.0, 1.0))
        windows = tuple(
            Window(w.name, w.start_s, min(w.end_s, cut_s), w.measured) for w in windows if w.start_s < cut_s
        )
    measured = [window for window in windows if window.measured]
    samples = recording.samples
    phases = tuple(_phase(window, samples, scenario, recording) for window in measured)
    # Phases follow one another, so everything measured is one window.
    span = Window("total", measured[0].start_s, measured[-1].end_s) if measured else Window("total", 0.0, 0.0)
    total = _phase(span, samples, scenario, recording)
    inside = within(samples, span)
    targets = tuple(_target(i, span, samples, scenario, prepared, recording) for i in range(len(scenario.targets)))
    generation = Generation(
        loop=scenario.loop,
        offered=total.counts.offered,
        sent=total.counts.offered - total.counts.dropped,
        dropped=total.counts.dropped,
        lag_p99_s=total.lag.p99_s,
        cpu=mean_cpu(recording.cpu, windows),
        lost_processes=recording.lost_processes,
        planned_s=prepared.schedule.end_s,
        stopped_s=recording.stopped_s,
    )
    end_s = max(prepared.schedule.end_s, float(np.nanmax(samples.done_s, initial=0.0)))
    line = timeline(samples, end_s)
    return LoadResult(
        host=prepared.host,
        started=started,
        load=_load(scenario, prepared, span),
        verdict=judge(generation, misses(inside, scenario.objective), scenario.objective),
        total=total,
        phases=phases,
        timeline=line,
        server=server_timeline(recording.snapshots, _models(scenario), recording.epoch_s, len(line.t_s)),
        generator_cpu=generation.cpu,
        distribution=distribution(inside.latency_s[inside.ok]),
        machine=this_machine(),
        targets=targets if len(targets) > 1 else (),
    )


def _phase(window: Window, samples: Samples, scenario: Scenario, recording: Recording) -> PhaseResult:
    inside = within(samples, window)
    found = counts(inside, scenario.objective.limit_s)
    duration_s = max(window.duration_s, 1e-9)
    sent = ~np.isnan(inside.sent_s)
    return PhaseResult(
        name=window.name,
        start_s=window.start_s,
        duration_s=window.duration_s,
        offered_rps=found.offered / duration_s,
        achieved_rps=completed_in(samples, window) / duration_s,
        goodput_rps=found.good / duration_s,
        counts=found,
        latency=percentiles(inside.latency_s[inside.ok]),
        service=percentiles(inside.service_s[inside.ok]),
        lag=percentiles(inside.lag_s[sent]),
        missed=tuple(misses(inside, scenario.objective)),
        server=server_figures(
            recording.snapshots,
            _models(scenario),
            recording.epoch_s + window.start_s,
            recording.epoch_s + window.end_s,
        ),
    )


def _target(
    index: int, span: Window, samples: Samples, scenario: Scenario, prepared: Plan, recording: Recording
) -> PhaseResult:
    """One of several targets: its requests over all measured phases, and what the server said of its model."""
    calls = [call for call, target in enumerate(prepared.target) if target == index]
    own = replace(scenario, targets=(scenario.targets[index],), events=())
    found = _phase(span, samples.only(np.isin(samples.call, calls)), own, recording)
    return replace(found, name=target_names(scenario.targets)[index])


def _load(scenario: Scenario, prepared: Plan, span: Window) -> Load:
    due_s = prepared.schedule.due_s
    due_s = due_s[(due_s >= span.start_s) & (due_s < span.end_s)] - span.start_s
    return Load(
        scenario=scenario.name,
        about=scenario.about,
        loop=scenario.loop,
        rate=scenario.rate,
        seed=scenario.seed,
        warmup_s=scenario.warmup_s,
        duration_s=span.duration_s,
        objective=str(scenario.objective),
        limit_s=scenario.objective.limit_s,
        targets=tuple(asdict(target) for target in scenario.targets),
        phases=tuple(
            {
                "name": phase.name,
                "pattern": type(phase.arrivals).__name__.lower(),
                "duration_s": phase.duration_s,
                **asdict(phase.arrivals),  # type: ignore[call-overload]
            }
            for phase in scenario.phases
        ),
        generator=asdict(scenario.generator),
        body_bytes=max(len(call.body) for call in prepared.calls),
        gap_cv=_known(gap_cv(due_s)) if scenario.loop == "open" else None,
        dispersion_10s=_known(dispersion(due_s, span.duration_s)) if scenario.loop == "open" else None,
    )


def _command(prepared: Plan, processes: int, folder: Path) -> list[str]:
    spec = importlib.util.find_spec("loadtest.locustfile")
    assert spec is not None and spec.origin is not None
    command = [sys.executable, "-m", "locust", "-f", spec.origin, "--headless", "--only-summary"]
    command += ["--host", prepared.host, "--loglevel", "WARNING", "--exit-code-on-error", "0"]
    command += ["--plan", str(folder / "plan.msgpack"), "--samples", str(folder), "--parent", str(os.getpid())]
    if processes > 1:
        port = str(_free_port())
        command += ["--processes", str(processes), "--master-bind-host", "127.0.0.1"]
        command += ["--master-bind-port", port, "--master-port", port]
    return command


def _watch(
    process: subprocess.Popen[bytes],
    prepared: Plan,
    processes: int,
    folder: Path,
    on_progress: OnProgress | None,
) -> float | None:
    """Wait for Locust to finish; the second at which it was stopped early, or None."""
    began_s = time.monotonic()
    limit_s = START_LIMIT_S + prepared.schedule.end_s + prepared.timeout_s + 10.0
    reported, reported_s = -1, 0.0
    while process.poll() is None:
        time.sleep(0.1)
        if time.monotonic() - began_s > limit_s:
            raise OperatorError(f"loadtest: Locust did not finish within {limit_s:.0f} s and was stopped")
        if on_progress is None:
            continue
        now = _progress(prepared, processes, folder)
        if now.recorded + int(now.t_s) != reported or time.monotonic() - reported_s > 0.5:
            reported, reported_s = now.recorded + int(now.t_s), time.monotonic()
            if on_progress(now):
                return max(now.t_s, 0.0)
    return None


def _progress(prepared: Plan, processes: int, folder: Path) -> Progress:
    lines = [found for i in range(processes) if (found := _last_line(folder / f"progress-{i}.jsonl"))]
    t_s = min((line["t_s"] for line in lines), default=-1.0)
    phase = next((w.name for w in prepared.schedule.windows if w.start_s <= t_s < w.end_s), "finishing")
    return Progress(
        t_s=t_s,
        end_s=prepared.schedule.end_s,
        phase="starting" if t_s < 0 else phase,
        offered=int(np.searchsorted(prepared.schedule.due_s, t_s)),
        **{name: sum(int(line[name]) for line in lines) for name in ("recorded", "ok", "dropped", "in_flight")},
    )


def _last_line(file: Path) -> dict[str, Any] | None:
    try:
        lines = file.read_text().splitlines()
        return dict(json.loads(lines[-1])) if lines else None
    except (OSError, ValueError):
        return None  # not there yet, or a line half written


def _end(process: subprocess.Popen[bytes]) -> None:
    """End Locust and its workers, which are one process group. On SIGINT it ends the run and writes its samples."""
    try:
        for stop, wait_s in ((signal.SIGINT, 30.0), (signal.SIGTERM, 3.0)):
            if process.poll() is None:
                process.send_signal(stop)
            try:
                process.wait(wait_s)
                return
            except subprocess.TimeoutExpired:
                continue
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # it, or workers that outlived their master
        except (ProcessLookupError, PermissionError):
            pass
        process.wait()


def _models(scenario: Scenario) -> list[str]:
    return sorted({Target.parse(target.model).model for target in scenario.targets})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
