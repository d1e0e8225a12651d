import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from cluster.store.embedded import EmbeddedServer


class Server:
    """An embedded server that a test may kill and start again."""

    def __init__(self, directory: Path, run_dir: Path) -> None:
        self.embedded = EmbeddedServer(directory, run_dir)
        self.process = None

    def start(self) -> None:
        self.process = self.embedded.start()
        self.embedded.wait_ready(self.process)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    @property
    def url(self) -> str:
        return self.embedded.url()


def started():
    folder = Path(tempfile.mkdtemp(prefix="prism-store-"))
    server = Server(folder / "data", folder / "run")
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def store_server():
    """One running server for the session; tests use models of their own."""
    yield from started()


@pytest.fixture
def own_server():
    """A running server that only this test uses, and may kill."""
    yield from started()
