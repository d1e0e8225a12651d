"""Bringing a home's Prism up and taking it down, from a command that may be interrupted at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from cluster import procs, ray_head
from cluster.errors import OperatorError
from cluster.home import Home, SupervisorState
from cluster.join import JoinDocument, check_reachable
from cluster.settings import Boot, Settings

_STEP_S = 0.05
_STOP_S = 45.0  # the supervisor's own way down is shorter

SUPERVISOR = (sys.executable, "-m", "cluster.supervisor")


def bring_up(
    home: Home, settings: Settings, say: Callable[[str], None], supervisor: Sequence[str] = SUPERVISOR
) -> Boot:
    """Start a supervisor and wait until the gateway answers.

    Args:
        say: Called with one line for each step that is done.
        supervisor: The command; `--home DIR --config FILE` is added.

    Raises:
        OperatorError: Something could not be started, or the node was drained meanwhile; nothing is left running.
        KeyboardInterrupt: What had been started has been stopped again.
    """
    home.prepare()
    process = _start(home, settings, supervisor)
    told = 0
    try:
        while True:
            ended = process.poll() is not None
            state = home.supervisor()
            if state is not None and state.pid == process.pid:
                for step in state.steps[told:]:
                    say(step)
                told = len(state.steps)
                if state.phase == "ready":
                    return Boot.read(home.boot_file)
                if state.phase == "failed" and ended:
                    raise OperatorError(state.error)
            if ended:
                raise OperatorError(_last_words(home) or f"the supervisor ended (exit code {process.returncode})")
            time.sleep(_STEP_S)
    except KeyboardInterrupt:
        take_down(home)
        raise


def join_up(home: Home, settings: Settings, document: JoinDocument, say: Callable[[str], None]) -> Boot:
    """`bring_up` for a node that joins the cluster of `document`, which is kept in the home once the head answers."""
    check_reachable(document)
    home.prepare()
    document.write(home.join_file)
    return bring_up(home, settings, say, (*SUPERVISOR, "--join", str(home.join_file)))


def take_down(home: Home) -> int:
    """Stop everything that belongs to the home, also what a crash has left. Returns how many processes there were."""
    count = len(procs.find_marked(home.key, _leaders(home.supervisor())))
    if count:
        state = home.supervisor()
        supervisor = procs.Identity(state.pid, state.started_s).process() if state is not None else None
        if supervisor is not None:
            procs.stop([supervisor], _STOP_S)
        home.stop_processes(5.0)
    home.boot_file.unlink(missing_ok=True)
    home.supervisor_pid_file.unlink(missing_ok=True)
    home.clear_run_dir()
    return count


def follow(home: Home) -> None:
    """Wait for as long as the supervisor lives. Raises: OperatorError if it ends without having been asked to."""
    state = home.supervisor()
    while state is not None and state.alive():
        time.sleep(0.2)
        state = home.supervisor()
    if state is not None:
        raise OperatorError(state.error or f"the supervisor has ended (log: {home.log_dir / 'supervisor.log'})")


def _start(home: Home, settings: Settings, supervisor: Sequence[str]) -> subprocess.Popen[bytes]:
    """The supervisor's process, in a session of its own."""
    descriptor = os.open(home.settings_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # may hold a store password
    with os.fdopen(descriptor, "w") as stream:
        json.dump(asdict(settings), stream, indent=2)
    with (home.log_dir / "supervisor.out").open("wb") as output:
        return subprocess.Popen(
            [*supervisor, "--home", str(home), "--config", str(home.settings_file)],
            env=procs.marked(ray_head.own_environment(home, os.environ), home.key),
            cwd=home.path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_default_signals,
        )


def _default_signals() -> None:
    """Not to ignore SIGINT and SIGTERM because a shell that started us in the background did."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def _leaders(state: SupervisorState | None) -> tuple[procs.Identity, ...]:
    return state.leaders if state is not None else ()


def _last_words(home: Home) -> str:
    lines = (home.log_dir / "supervisor.out").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
