"""Proofs in forks of one process that has imported what they need, for tests that prove many small models.

Prism proves and measures each form in a process of its own, which imports a framework first: with a small model that
takes longer than everything else. Here those processes are forked from one that has imported it already, so that an
abort still ends one proof only. Tests of the processes themselves do without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

WORKER = "converters.worker"


class ForkedProofs:
    """Stands in for the module `subprocess` of `converters.isolated`."""

    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, WORKER, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        """What `subprocess.run` gives for `python -P -m converters.worker REQUEST RESULT`."""
        if command[1:-2] != ["-P", "-m", WORKER]:
            return subprocess.run(command, **options)
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.NamedTemporaryFile() as printed:
            self._process.stdin.write(json.dumps([*command[-2:], printed.name, os.getcwd()]) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(command, code, b"", Path(printed.name).read_bytes())

    def close(self) -> None:
        """End the process that forks."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def serve(modules: list[str]) -> None:
    """Fork for each line of standard input, and answer with the exit code."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what frameworks print must not get among the answers
    for name in modules:
        import_module(name)
    for line in sys.stdin:
        request, result, printed, folder = json.loads(line)
        child = os.fork()
        if not child:
            os.chdir(folder)
            prove(request, result, printed)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answers.write(f"{code}\n")
        answers.flush()


def prove(request: str, result: str, printed: str) -> None:
    """One task of the worker, after which this process is over."""
    code = 1
    try:
        file = os.open(printed, os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        import_module(WORKER).main(request, result)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1:])
