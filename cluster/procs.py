"""The processes of one Prism: how they are recognised, and how they are stopped.

Every process that Prism starts inherits the environment variable `PRISM_HOME_KEY`, and starts in a session that is not
the user's. A process belongs to a home if it carries the home's mark, if it lives in a session in which a marked
process was found, or in one whose leader was written down (the store and some of Ray's agents overwrite their
environment when they rename themselves). The processes that called us, and their sessions, never belong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

MARK = "PRISM_HOME_KEY"

_KILL_WAIT_S = 10.0
_STEP_S = 0.02
_CLOCK_SLACK_S = 0.05  # start times are counted in kernel ticks


@dataclass(frozen=True, slots=True)
class Identity:
    """A process id with its start time, so that a reused id is not mistaken for the process."""

    pid: int
    started_s: float

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a running process; None if there is none of that id."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_s) <= _CLOCK_SLACK_S
            return process if same and runs(process) else None
        except psutil.Error:
            return None


def marked(environment: Mapping[str, str], key: str) -> dict[str, str]:
    """A copy of `environment` that marks a child, and all its children, as belonging to the home of `key`."""
    return {**environment, MARK: key}


def find_marked(key: str, leaders: Iterable[Identity] = ()) -> tuple[psutil.Process, ...]:
    """All running processes that belong to the home of `key`; never this process nor any that led to it.

    Args:
        leaders: Session leaders known to belong; one whose id has been reused is passed over.
    """
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    my_sessions = {session_of(pid) for pid in mine}
    found: list[psutil.Process] = []
    unmarked: list[psutil.Process] = []
    uid = os.getuid()
    for process in psutil.process_iter():
        try:
            if process.pid in mine or process.uids().real != uid or not runs(process):
                continue
            (found if process.environ().get(MARK) == key else unmarked).append(process)
        except psutil.Error:
            continue
    known = {leader.pid for leader in leaders if leader.process() is not None}
    sessions = (known | {session_of(process.pid) for process in found}) - my_sessions - {None}
    return (*found, *(process for process in unmarked if session_of(process.pid) in sessions))


def stop(processes: Iterable[psutil.Process], grace_s: float) -> int:
    """SIGTERM, and SIGKILL for those that still run after `grace_s`. Returns how many had to be killed."""
    left = list(processes)
    for process in left:
        _signal(process.terminate)
    left = _wait(left, grace_s)
    for process in left:
        _signal(process.kill)
    _wait(left, _KILL_WAIT_S)
    return len(left)


def stop_marked(key: str, grace_s: float, leaders: Iterable[Identity] = ()) -> int:
    """Stop everything that belongs to the home of `key`, and what it starts meanwhile. Returns how many there were."""
    total = 0
    known = tuple(leaders)
    while found := find_marked(key, known):
        total += len(found)
        stop(found, grace_s if total == len(found) else 0.0)
    return total


def _wait(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that still run after `timeout_s`. A process that only waits to be reaped has ended."""
    deadline_s = time.monotonic() + timeout_s
    while left := [process for process in processes if runs(process)]:
        if time.monotonic() >= deadline_s:
            return left
        time.sleep(_STEP_S)
    return []


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended; one that only waits to be reaped has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(send: object) -> None:
    assert callable(send)
    try:
        send()
    except psutil.Error:
        pass  # it has just ended


def session_of(pid: int) -> int | None:
    """The session a process lives in; None if it has ended."""
    try:
        return os.getsid(pid)
    except OSError:
        return None
