"""A conversion in a process of its own, so that whatever a framework does to its interpreter ends as an error.

One process makes all targets: to start an interpreter and import a framework costs more than most steps. If it dies,
the conversion has failed, as for any other reason. Where targets are to be made independently of each other
(`prism optimize`), the one that was being made is given up, and the others are made again in a new process.

Nothing that needs unpickling crosses the border: a request and a reply of JSON, lines of JSON on what happens next, and
files in the work folder, which belongs to this side and is removed by it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import IO, Any

from cluster.errors import ConversionFailed, error_from_wire
from converters.candidate import Options, Say
from converters.formats import Format
from converters.isolated import ending, environment

TAIL_BYTES = 16 << 10  # of what a process printed
DRAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Mark:
    """What a process works at: a step for a target. `begun` if a step before it succeeded, so the source is good."""

    target: str = ""
    step: str = "starting"
    begun: bool = False

    def __str__(self) -> str:
        return f"{self.target}: {self.step}" if self.target else self.step


@dataclass(frozen=True, slots=True)
class Death:
    """A process that left no reply, where it was, and how it ended."""

    mark: Mark
    how: str


def make_apart(
    source: Path, targets: Sequence[Format], work: Path, options: Options, say: Say, tolerant: bool
) -> dict[str, str]:
    """As `build.make`, in another process. The factory of `options` must be a name.

    Raises: ConversionFailed if the process dies or takes longer than `options.timeout_s`, and whatever `make` raises.
    """
    end_s = time.monotonic() + options.timeout_s if options.timeout_s is not None else None
    left, lost = list(targets), dict[str, str]()
    while left:
        request = {
            "task": "convert",
            "source": str(source),
            "targets": [target.value for target in left],
            "work": str(work),
            "options": replace(options, apart=False, timeout_s=None).to_json(),
            "tolerant": tolerant,
        }
        reply = _asked(request, say, None if end_s is None else max(0.0, end_s - time.monotonic()))
        if not isinstance(reply, Death):
            return {**reply["failures"], **lost}
        if not (tolerant and reply.mark.begun):
            raise ConversionFailed(f"{reply.mark}: {reply.how}")
        lost[reply.mark.target] = f"{reply.mark.step}: {reply.how}"
        left.remove(Format(reply.mark.target))
        _empty(work)
    return lost


def _asked(request: dict[str, Any], say: Say, timeout_s: float | None) -> dict[str, Any] | Death:
    """The reply to one request, or how the process died. Raises: the error in the reply; ConversionFailed if late."""
    with tempfile.TemporaryDirectory(prefix="prism-", ignore_cleanup_errors=True) as folder:
        request_file, result_file = Path(folder, "request.json"), Path(folder, "result.json")
        hears, tells = os.pipe()
        request_file.write_text(json.dumps({**request, "progress": tells, "temporary": folder}))
        # A session of its own: what it starts ends with it, and Ctrl-C comes to this process only, which ends it.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "converters.worker", str(request_file), str(result_file)],
            stdin=subprocess.PIPE,  # never written to: it ends when this process does
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(tells,),
            start_new_session=True,
            env=environment(folder),
        )
        os.close(tells)
        listener = _Listener(say, os.fdopen(hears, encoding="utf-8"), process.stdout)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ConversionFailed(f"{listener.mark}: it took longer than --timeout allows") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            listener.drain()
            assert process.stdin is not None
            process.stdin.close()
        if not result_file.is_file():
            return Death(listener.mark, f"the process {ending(process.returncode, listener.tail)}")
        reply = json.loads(result_file.read_bytes())
    if "error" in reply:
        raise error_from_wire(reply["error"]["name"], reply["error"]["message"])
    result: dict[str, Any] = reply["ok"]
    return result


class _Listener:
    """Two threads: one passes on what a process does next, the other keeps the end of what it prints."""

    def __init__(self, say: Say, progress: IO[str], printed: IO[bytes] | None) -> None:
        assert printed is not None
        self.mark = Mark()
        self.tail = b""
        self._say, self._progress, self._printed = say, progress, printed
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._hear, self._read)]
        for thread in self._threads:
            thread.start()

    def drain(self) -> None:
        """Wait for what was written before the process ended."""
        for thread in self._threads:
            thread.join(DRAIN_S)

    def _hear(self) -> None:
        with self._progress:
            for line in self._progress:
                with suppress(ValueError):  # half a line, of a process that died
                    event = json.loads(line)
                    if "say" in event:
                        self._say(event["say"])
                    else:
                        self.mark = Mark(**event)

    def _read(self) -> None:
        with self._printed:
            while chunk := os.read(self._printed.fileno(), TAIL_BYTES):
                self.tail = (self.tail + chunk)[-TAIL_BYTES:]


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()
