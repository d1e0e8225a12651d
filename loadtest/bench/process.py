"""A contestant's server as a process: started on a free port, asked until it answers rightly, stopped with its tree."""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster import procs
from cluster.errors import OperatorError
from loadtest.bench.accounting import MARK, ProcessTree
from loadtest.bench.answers import AnswerReader, UnreadableAnswer
from loadtest.bench.contestants import Contestant, filled
from loadtest.bench.formats import answer_values, request_bytes
from loadtest.bench.work import Prepared

_POLL_S = 0.1
_ASK_S = 60.0
_LOG_LINES = 2


FOREIGN = ("RAY_ADDRESS", "RAY_NAMESPACE", "PRISM_HOME", "REDIS_URL", procs.MARK)  # would lead to somebody else's


class NotReady(OperatorError):
    """It may be, if it is asked again."""


class ServerProcess:
    """A server's command and everything it starts: found by a mark in the environment, stopped together.

    The mark is its own, so that stopping it stops nothing else. `start_s` and `stop_s` are how long it may take.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, start_s: float, stop_s: float) -> None:
        self._name, self._command, self._log = name, tuple(command), log
        self._start_s, self._stop_s = start_s, stop_s
        self.mark = secrets.token_hex(8)

    def start(self, ready: Callable[[], bool]) -> None:
        """Until `ready`, which may raise OSError, HTTPException or NotReady to be asked again; anything else stops it.

        Raises: OperatorError if it ends or takes too long; nothing is left running.
        """
        environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        environment |= {MARK: self.mark, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.tree = ProcessTree(self.mark, self._process.pid)
        try:
            self._wait(ready, time.monotonic() + self._start_s)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for whatever of it is left then."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(self._stop_s)
            except subprocess.TimeoutExpired:
                pass
        while left := self.tree.look():
            procs.stop(left, 5.0)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            raise OperatorError(f"{self._name}: process {self._process.pid} does not end") from None

    def _wait(self, ready: Callable[[], bool], deadline_s: float) -> None:
        last = ""
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise OperatorError(f"{self._name}: ended with {self._process.returncode}: {self._last()}")
            try:
                if ready():
                    return
            except (OSError, http.client.HTTPException) as error:
                last = repr(error)
            except NotReady as error:
                last = error.message
            time.sleep(_POLL_S)
        raise OperatorError(f"{self._name}: not ready in time: {last} {self._last()}")

    def _last(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-_LOG_LINES:])


class Server:
    """One contestant serving one work. A context: leaving it stops every process that belongs to it."""

    def __init__(self, contestant: Contestant, prepared: Prepared, folder: Path) -> None:
        self.contestant, self.prepared = contestant, prepared
        self.port = free_port()
        self.ready_s = 0.0
        self._folder = folder
        self._values = {
            "port": str(self.port),
            "model_file": str(prepared.model_file),
            "artifact": str(prepared.artifact),
            "model": prepared.work.model,
            "max_batch_rows": str(contestant.batch_rows(prepared.work.max_batch_rows)),
        }
        self.path = filled(contestant.path, self._values)
        self._process = ServerProcess(
            contestant.name,
            [filled(part, self._values) for part in contestant.command],
            folder / f"{contestant.name}-{prepared.work.name}.log",
            contestant.start_s,
            contestant.stop_s,
        )

    def __enter__(self) -> Self:
        started_s = time.monotonic()
        self._process.start(self._answers_rightly)
        self.ready_s = time.monotonic() - started_s
        return self

    @property
    def tree(self) -> ProcessTree:
        return self._process.tree

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stop()

    def request_files(self, format_name: str) -> tuple[str, ...]:
        """Files with the bytes of one request per example."""
        files = []
        for number, row in enumerate(self.prepared.inputs):
            file = self._folder / f"{self.contestant.name}-{self.prepared.work.name}-{format_name}-{number}.request"
            file.write_bytes(request_bytes(format_name, self.path, self.port, row))
            files.append(str(file))
        return tuple(files)

    def check(self, format_name: str) -> None:
        """Ask for every example once. Raises: OperatorError if an answer is not the model's own."""
        for number, row in enumerate(self.prepared.inputs):
            raw = request_bytes(format_name, self.path, self.port, row)
            try:
                status, answer = ask(self.port, raw)
            except (OSError, UnreadableAnswer) as error:
                raise NotReady(f"{self.contestant.name}: no answer: {error!r}") from None
            if status != 200:
                raise NotReady(f"{self.contestant.name}: {format_name}: {status} {answer[-300:]!r}")
            self.compare(format_name, number, answer)

    def compare(self, format_name: str, number: int, answer: bytes) -> None:
        """Raises: OperatorError if `answer` is not the model's answer to that example."""
        try:
            right = self.prepared.matches(number, answer_values(answer))
        except (ValueError, KeyError):
            right = False
        if not right:
            raise OperatorError(f"{self.contestant.name}: {format_name}: wrong answer to example {number}")

    def _answers_rightly(self) -> bool:
        if not answers(self.port, filled(self.contestant.ready, self._values)):
            return False
        self.check(self.contestant.formats[0])
        return True


def answers(port: int, path: str) -> bool:
    """Whether GET `path` answers below 400. Raises: OSError, HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", path)
        return connection.getresponse().status < 400
    finally:
        connection.close()


def ask(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and whole answer to one request. Raises: OSError, UnreadableAnswer."""
    reader = AnswerReader()
    reader.keep = True
    with socket.create_connection(("127.0.0.1", port), timeout=_ASK_S) as connection:
        connection.sendall(request)
        while data := connection.recv(1 << 20):
            if status := reader.feed(data):
                return status, reader.head + b"\r\n\r\n" + reader.body
    raise ConnectionError("closed before the answer was whole")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
