"""The supervisor: starts the store, the door, the Ray node and what runs on it, and keeps them alive.

`prism up` leaves one behind (`python -m cluster.supervisor --home DIR --config FILE`); it outlives the shell. It holds
a lock on the home for as long as it lives. A store that dies is started again with its data; a Ray head that dies is
started again with everything on it, from the desired state in the store. SIGTERM stops everything in order. If the
supervisor itself is killed, store and Ray go on; the next `prism up` or `prism down` stops what it left behind.

On a node that joins another's cluster it looks after the door and the Ray node only: a node that dies, also because the
head was away for too long, joins again, and one that was drained is taken down.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import logging.handlers
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import IO

from cluster import procs, ray_head
from cluster.door import Door, bind
from cluster.errors import OperatorError, ServingError
from cluster.home import Home, Phase, SupervisorState
from cluster.join import JoinDocument, joinable
from cluster.parts import Parts, StoreServer, parts_for, parts_to_join
from cluster.probe import http_url
from cluster.procs import Identity
from cluster.settings import Boot, Settings, read_settings
from cluster.store.url import redacted

log = logging.getLogger("prism.supervisor")

BOOTSTRAP_S = 180.0
STORE_START_S = 60.0
GRACE_S = 8.0
_WATCH_S = 0.1
_LONGEST_PAUSE_S = 30.0
_HEALTHY_S = 60.0  # a head that ran for so long starts again at once
_LOG_BYTES = 4 << 20


def pause_s(failures: int) -> float:
    """How long to wait before the next attempt, after so many in a row that came to nothing."""
    return 0.0 if failures == 0 else min(_LONGEST_PAUSE_S, 0.5 * 2.0**failures)


class Supervisor:
    """One per home. `run` returns the exit code of the process."""

    def __init__(self, home: Home, settings: Settings, parts: Parts) -> None:
        self._home = home
        self._settings = settings
        self._parts = parts
        self._environ = procs.marked(ray_head.own_environment(home, os.environ), home.key)
        self._stop = threading.Event()
        self._store: subprocess.Popen[bytes] | None = None
        self._ray: subprocess.Popen[bytes] | None = None
        self._close_door: Callable[[], None] = lambda: None
        self._was_ready = False
        identity = Identity.of(os.getpid())
        assert identity is not None
        self._state = SupervisorState(identity.pid, identity.started_s, "starting")

    def run(self) -> int:
        """Until SIGTERM or SIGINT: 0. If something could not be started at first: 1, with nothing left running.

        Raises: OperatorError if the home has a supervisor already.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with self._home.lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OperatorError(f"{self._home} already has a supervisor") from None
            left = self._home.stop_processes(GRACE_S)
            if left:
                log.warning("stopped %d processes that an earlier supervisor had left", left)
            error = self._run()
            self._shut_down(error)
            return 1 if error else 0

    def _run(self) -> str:
        """Until asked to stop: "". Otherwise why not, in one line."""
        try:
            self._report("starting")
            http = self._settings.http
            with bind(http.host, http.port) as sock, closing(Door(self._home.door_file, sock)) as door:

                def close_door() -> None:
                    door.close()
                    sock.close()

                self._close_door = close_door
                self._serve(sock.getsockname()[1])
        except _Stopped:
            return ""
        except ServingError as error:
            log.error("%s", error.message)
            return error.message
        except Exception as error:
            log.exception("the supervisor failed")
            return f"the supervisor failed: {type(error).__name__}: {error}"
        return ""

    def _serve(self, port: int) -> None:
        """Start everything and keep it running. Raises: _Stopped; ServingError if the first start fails."""
        if isinstance(self._parts.store, str):
            self._report("starting", f"store answers at {redacted(self._parts.store)}")
        else:
            self._start_store(self._parts.store, may_move=True)
            self._report("starting", "store ready")
        watch = self._parts.watch
        self._bring_up(port)
        url = http_url(self._settings.http.host, port)
        waits = watch is not None and not self._settings.ray.idle_gateway
        self._report_up(
            f"a gateway will answer on {url} once replicas run here" if waits else f"gateway answers on {url}"
        )
        failures, started_s = 0, time.monotonic()
        while True:
            self._wait(_WATCH_S)
            if self._ray is not None and self._ray.poll() is None:
                continue
            if time.monotonic() - started_s > _HEALTHY_S:
                failures = 0
            why = self._state.error or "the Ray node ended"
            wait_s = pause_s(failures)
            if watch is not None:  # Ray ends also where nothing is left of a node that drains, before we heard of it
                wait_s = max(wait_s, 2 * watch.period_s)
            log.error("%s; starting again in %.0f s", why, wait_s)
            self._report("recovering", error=why)
            self._wait(wait_s)
            failures, started_s = failures + 1, time.monotonic()
            try:
                self._bring_up(port)
            except ServingError as error:
                self._report("recovering", error=error.message)
                self._drop_ray()
                self._home.keep_ray_logs()
            else:
                self._report_up()

    def _follow_drain(self) -> None:
        """Leave when this node was drained: refuse new connections at once, end when nothing runs any more.

        Raises: _Stopped; OperatorError if it never was ready, for whoever waits for that.
        """
        watch = self._parts.watch
        if watch is None or not watch.wanted:
            return
        if self._state.phase != "draining":
            self._close_door()
            self._report("draining", "draining: what runs here moves to other nodes")
        if watch.done or self._ray is None or self._ray.poll() is not None:
            log.info("drained")
            if not self._was_ready:
                raise OperatorError("the node was drained before it was ready (prism drain), and has left the cluster")
            raise _Stopped

    def _wait(self, seconds: float) -> None:
        """Let time pass while the store is kept alive and a drain is followed. Raises: as `_follow_drain`."""
        deadline_s = time.monotonic() + seconds
        while True:
            if self._stop.is_set():
                raise _Stopped
            self._keep_store()
            self._follow_drain()
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return
            self._stop.wait(min(left_s, _WATCH_S))

    def _start_store(self, server: StoreServer, may_move: bool) -> None:
        self._store = server.start(self._environ, may_move=may_move)
        self._remember()
        server.wait_ready(self._store, STORE_START_S)

    def _keep_store(self) -> None:
        server = self._parts.store
        if isinstance(server, str) or (self._store is not None and self._store.poll() is None):
            return
        log.error("the store ended; starting it again")
        try:
            self._start_store(server, may_move=False)
            log.info("the store answers again")
        except ServingError as error:
            log.error("%s", error.message)
            self._stop.wait(1.0)

    def _bring_up(self, port: int) -> None:
        """Ray, then what runs on it; a new cluster where an earlier one could not be continued.

        Raises: OperatorError, and then some of it may be left running; _Stopped.
        """
        boots = self._parts.boots
        try:
            self._start(port)
        except OperatorError as error:
            if boots is None or not boots.give_up(error.message):
                raise
            log.error("%s; a new Ray cluster is started", error.message)
            self._home.keep_ray_logs()
            self._start(port)
        if boots is not None:
            boots.settle()

    def _start(self, port: int) -> None:
        self._drop_ray()
        with _appended(self._home.log_dir / "ray-head.log") as output:
            node = self._parts.start_ray(self._environ, output, port)
        self._ray = node.process
        self._remember()
        boots = self._parts.boots
        self._report(self._state.phase, boots.told() if boots is not None else "Ray ready", self._state.error)
        boot = self._boot(node.address, port)
        boot.write(self._home.boot_file)
        if self._parts.watch is not None:
            self._parts.watch.follow(node.id)
        else:
            self._home.head_file.touch()
            if boot.node_ip:
                JoinDocument.of_head(boot, self._home.secret("ray-token")).write(self._home.join_file)
        self._bootstrap()

    def _bootstrap(self) -> None:
        file = self._home.log_dir / "bootstrap.log"
        with _appended(file) as output:
            start = output.tell()
            process = subprocess.Popen(
                [*self._parts.bootstrap, "--boot", str(self._home.boot_file)],
                env=self._environ,
                cwd=self._home.path,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            deadline_s = time.monotonic() + BOOTSTRAP_S
            try:
                while process.poll() is None:
                    if self._ray is None or self._ray.poll() is not None:
                        raise OperatorError(f"ray: the node ended during the start (logs: {self._home.log_dir})")
                    if time.monotonic() > deadline_s:
                        raise OperatorError(f"the gateway was not ready within {BOOTSTRAP_S:.0f} s (log: {file})")
                    self._wait(_WATCH_S / 2)
                    if self._state.phase == "draining":
                        return  # no gateway comes any more
            finally:
                process.kill()
                process.wait()
        if process.returncode != 0:
            raise OperatorError(_last_line(file, start) or f"deploying failed with exit code {process.returncode}")

    def _boot(self, address: str, port: int) -> Boot:
        home, settings = self._home, self._settings
        return Boot(
            home=str(home),
            run_dir=str(home.run_dir),
            door=str(home.door_file),
            store_url=self._parts.store if isinstance(self._parts.store, str) else self._parts.store.url(),
            artifacts_url=self._parts.artifacts_url or settings.artifacts.url or str(home.artifacts_dir),
            ray_address=address,
            admin_token=home.secret("admin-token"),
            wire_secret=home.secret("wire-secret"),
            http_port=port,
            grpc_port=settings.grpc.port,
            settings=settings,
            node_ip=settings.ray.node_ip if joinable(settings.ray.node_ip) or self._parts.watch else "",
        )

    def _drop_ray(self) -> None:
        """Stop the head and what is left in its session."""
        process, self._ray = self._ray, None
        if process is None:
            return
        left = [found for found in procs.find_marked(self._home.key) if procs.session_of(found.pid) == process.pid]
        _end(process)
        procs.stop(left, 1.0)

    def _shut_down(self, error: str) -> None:
        """Stop everything but this process, and remove what only a running Prism has."""
        self._report("stopping")
        self._home.boot_file.unlink(missing_ok=True)
        self._drop_ray()
        if self._store is not None:
            _end(self._store)
        self._home.stop_processes(1.0)
        if error:
            self._home.keep_ray_logs()
        self._home.clear_run_dir()
        self._store = None
        if error:
            self._remember()
            self._report("failed", error=error)
        else:
            self._home.supervisor_pid_file.unlink(missing_ok=True)
        log.info("stopped")

    def _remember(self) -> None:
        """Write down which sessions are ours."""
        started = (Identity.of(process.pid) for process in (self._store, self._ray) if process is not None)
        self._state = replace(self._state, leaders=tuple(leader for leader in started if leader is not None))
        self._home.write_supervisor(self._state)

    def _report_up(self, step: str = "") -> None:
        """Everything runs that should: that is less on a node that drains."""
        if self._state.phase != "draining":
            self._was_ready = True
            self._report("ready", step)

    def _report(self, phase: Phase, step: str = "", error: str = "") -> None:
        """Write how far it has come, for `prism up` and `prism status`."""
        steps = self._state.steps
        if step:
            log.info("%s", step)
            steps = steps if step in steps else (*steps, step)
        self._state = replace(self._state, phase=phase, steps=steps, error=error)
        self._home.write_supervisor(self._state)


class _Stopped(Exception):
    """Asked to stop."""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _appended(file: Path) -> IO[bytes]:
    """The file, open for appending; what it held is put aside once it is large."""
    if file.exists() and file.stat().st_size > _LOG_BYTES:
        file.replace(file.with_name(file.name + ".1"))
    return file.open("ab")


def _last_line(file: Path, start: int) -> str:
    lines = file.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else ""


def _log_to(file: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(file, maxBytes=_LOG_BYTES, backupCount=2)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def main() -> int:
    """Entry point. A reason for not starting goes to stderr, in one line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--join", type=Path, help="Join the cluster of this file.")
    arguments = parser.parse_args()
    home = Home(arguments.home)
    try:
        home.prepare()
        _log_to(home.log_dir / "supervisor.log")
        settings = read_settings(arguments.config)
        if arguments.join is None:
            parts = parts_for(home, settings)
        else:
            parts = parts_to_join(home, settings, JoinDocument.read(arguments.join))
        return Supervisor(home, settings, parts).run()
    except ServingError as error:
        log.error("%s", error.message)
        print(error.message, file=sys.stderr)
        last = home.supervisor()
        if last is not None and not last.alive():  # else an older failure would pass for the last one
            home.write_supervisor(replace(last, phase="failed", error=error.message))
        return 1


if __name__ == "__main__":
    sys.exit(main())
