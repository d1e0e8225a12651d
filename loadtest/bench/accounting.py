"""What a server costs: CPU seconds and memory of all its processes, by what they are for.

A server's processes are those whose environment carries its mark, and everything below them: Ray's daemons, workers
and proxies count, whoever started them. The kernel counts CPU in ticks of 10 ms.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psutil

MARK = "PRISM_BENCH_MARK"
QUIET_CORES = 0.15  # a server that has just started works on for a while

# What a process is for, by the first of these found in its command line; anything else is "server".
KINDS: tuple[tuple[str, str], ...] = (
    ("ray::ServeReplica:prism-gateway", "gateway"),
    ("ray::ServeReplica:prism-controller", "controller"),
    ("ray::ServeReplica", "replica"),
    ("ray::ProxyActor", "proxy"),
    ("ray::HAProxyManager", "proxy"),
    ("haproxy", "proxy"),
    ("ray::", "ray"),
    ("gcs_server", "ray"),
    ("raylet", "ray"),
    ("ray/_private", "ray"),
    ("ray/dashboard", "ray"),
    ("cluster.ray_head", "ray"),
    ("valkey-server", "store"),
    ("redis-server", "store"),
    ("cluster.supervisor", "supervisor"),
    ("cluster.door", "supervisor"),
    ("loadtest.bench.servers.prism", "launcher"),
    ("loadtest.bench.servers.ray_serve", "launcher"),
)


@dataclass(frozen=True, slots=True)
class ProcessTimes:
    """CPU seconds of one process since it began: its own, and those of children that ended and were waited for."""

    pid: int
    parent: int
    started_s: float
    kind: str
    own_s: float
    reaped_s: float

    @property
    def total_s(self) -> float:
        return self.own_s + self.reaped_s


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of all processes of a kind. `pss` divides shared pages by how many share them; rss where it is unknown."""

    processes: int
    pss_bytes: int
    exact: bool  # False: at least one process told only its rss


def kind_of(command: Sequence[str]) -> str:
    """What a process is for, by its command line."""
    line = " ".join(command)
    return next((kind for part, kind in KINDS if part in line), "server")


def used_s(before: Iterable[ProcessTimes], after: Iterable[ProcessTimes]) -> dict[str, float]:
    """CPU seconds between two readings, by kind.

    A process that ended in between is found in its parent's `reaped_s`, with what it had used before the first reading
    taken off. Where nobody waited for it, or its parent ended too, what it used since the first reading is lost.
    """
    earlier = {(p.pid, p.started_s): p for p in before}
    later = {(p.pid, p.started_s): p for p in after}
    by_kind: dict[str, float] = defaultdict(float)
    reaped: dict[int, float] = {}
    kinds: dict[int, str] = {}
    for key, process in later.items():
        old = earlier.get(key)
        by_kind[process.kind] += process.total_s - (old.total_s if old else 0.0)
        reaped[process.pid] = process.reaped_s - (old.reaped_s if old else 0.0)
        kinds[process.pid] = process.kind
    for key, process in earlier.items():
        # Counted in ticks, a parent's share may come out a little smaller than its parts.
        if key not in later and reaped.get(process.parent, 0.0) >= process.total_s - 0.015:
            reaped[process.parent] -= process.total_s
            by_kind[kinds[process.parent]] -= process.total_s
    return {kind: max(0.0, seconds) for kind, seconds in by_kind.items()}


class ProcessTree:
    """The processes of one server."""

    def __init__(self, mark: str, root: int) -> None:
        self._mark, self._root = mark, root
        self._members: dict[int, psutil.Process] = {}

    def look(self) -> tuple[psutil.Process, ...]:
        """Find the processes again; those that run."""
        parents: dict[int, int] = {}
        processes: dict[int, psutil.Process] = {}
        own: set[int] = {self._root}
        uid = os.getuid()
        for process in psutil.process_iter():
            try:
                if process.uids().real != uid or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                parents[process.pid] = process.ppid()
                processes[process.pid] = process
                if process.environ().get(MARK) == self._mark:
                    own.add(process.pid)
            except psutil.Error:
                continue
        members = descendants(own, parents) & processes.keys() - {os.getpid()}
        self._members = {pid: processes[pid] for pid in members}
        return tuple(self._members.values())

    def times(self) -> tuple[ProcessTimes, ...]:
        """A reading of all processes, new ones included."""
        self.look()
        found = []
        for pid, process in self._members.items():
            try:
                with process.oneshot():
                    cpu = process.cpu_times()
                    found.append(
                        ProcessTimes(
                            pid,
                            process.ppid(),
                            process.create_time(),
                            kind_of(process.cmdline() or [process.name()]),
                            cpu.user + cpu.system,
                            getattr(cpu, "children_user", 0.0) + getattr(cpu, "children_system", 0.0),
                        )
                    )
            except psutil.Error:
                continue
        return tuple(found)

    def memory(self) -> dict[str, Memory]:
        """Memory by kind, of the processes found last."""
        found: dict[str, Memory] = {}
        for process in self._members.values():
            try:
                kind = kind_of(process.cmdline() or [process.name()])
                size, exact = _memory_of(process)
            except psutil.Error:
                continue
            old = found.get(kind, Memory(0, 0, True))
            found[kind] = Memory(old.processes + 1, old.pss_bytes + size, old.exact and exact)
        return found


def settled(tree: ProcessTree, tries: int, look_s: float) -> dict[str, float]:
    """Cores used by kind when nobody asks, once start-up work has died down (or the tries are used up)."""
    idle: dict[str, float] = {}
    for _ in range(max(1, tries)):
        before, started_s = tree.times(), time.monotonic()
        time.sleep(look_s)
        used = used_s(before, tree.times())
        took_s = time.monotonic() - started_s
        idle = {kind: seconds / took_s for kind, seconds in used.items()}
        if sum(idle.values()) < QUIET_CORES:
            break
    return idle


def descendants(roots: Iterable[int], parents: Mapping[int, int]) -> set[int]:
    """`roots` and all processes below them, given each process's parent."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid, parent in parents.items():
        children[parent].append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children[pid]
    return found


def busy_s() -> float:
    """CPU seconds that all processors of the machine have worked since it started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0))


def stolen_s() -> float:
    """CPU seconds that the hypervisor gave to others, where it says so."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def _memory_of(process: psutil.Process) -> tuple[int, bool]:
    try:
        return int(process.memory_full_info().pss), True
    except (psutil.AccessDenied, AttributeError):
        return int(process.memory_info().rss), False
