"""A running Prism as tests see it: driven through its command line, as an operator would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster import procs
from cluster.home import Home
from cluster.settings import Boot
from cluster.store.redis import RedisStore

PRISM = str(Path(sys.executable).parent / "prism")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Prism:
    """A running Prism, driven through its command line as an operator would.

    `environ` is added to the environment of every command.
    """

    home: Path
    port: int
    environ: dict[str, str] = field(default_factory=dict)

    def cli(self, *arguments: str, check: bool = True, timeout_s: float = 240) -> subprocess.CompletedProcess:
        """Run `prism ARGUMENTS --home ...`; fails the test if it fails, unless `check` is off."""
        done = subprocess.run(
            [PRISM, *arguments, "--home", str(self.home)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "PRISM_HOME")} | self.environ,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"prism {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def json(self, *arguments: str) -> dict:
        return json.loads(self.cli(*arguments, "--json").stdout)

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(self.url(path), timeout=10) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def boot(self) -> Boot:
        return Boot.read(self.home / "boot.json")

    @property
    def store(self) -> RedisStore:
        return RedisStore(self.boot.store_url)

    def until(self, what, timeout_s: float = 60.0, every_s: float = 0.1):
        """The first true value of `what()`; fails the test if there is none in time."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            value = what()
            if value:
                return value
            time.sleep(every_s)
        raise AssertionError(f"did not happen within {timeout_s} s: {what}")

    def kill_all(self) -> None:
        """What the loss of a machine does to the processes on it."""
        home = Home(self.home)
        state = home.supervisor()
        assert state is not None
        for process in procs.find_marked(home.key, (procs.Identity(state.pid, state.started_s), *state.leaders)):
            process.kill()

    def replica_pids(self, model: str, version: str = "1") -> dict[str, int]:
        """Live replica processes of a version by replica id."""
        found = {}
        for process in psutil.process_iter(["pid", "cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            if "ServeReplica" in line and f"model:{model}:{version}:" in line.replace("#", ":"):
                try:
                    if process.environ().get("PRISM_HOME_KEY") == Home(self.home).key:
                        found[str(process.pid)] = process.pid
                except psutil.Error:
                    continue
        return found
