"""A real supervisor with a real store and door; Ray and what runs on it are stand-ins."""

import argparse
import os
import sys
from pathlib import Path

from cluster import ray_head
from cluster.drain import DrainWatch
from cluster.errors import ServingError
from cluster.home import Home
from cluster.nodes import DrainRequest, NodeReport, NodeReports
from cluster.parts import Parts
from cluster.settings import read_settings
from cluster.store.embedded import EmbeddedServer
from cluster.supervisor import Supervisor

HEAD = """
import os, subprocess, sys, time
ready = int(sys.argv[-1])
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={})  # an agent that lost its mark
os.write(ready, b"127.0.0.1:1 node-1\\n")
os.close(ready)
time.sleep(600)
"""
DEPLOY = "import os, sys; sys.exit(os.environ.get('STUB_DEPLOY') or 0)"


class NodesByFile:
    """What the store would say of node-1: to be drained once `HOME/drain` is there, and empty once `HOME/empty` is."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def drains(self):
        return {"node-1": DrainRequest("ada", 1.0)} if (self._home.path / "drain").exists() else {}

    def reports(self):
        state = "DRAINED" if (self._home.path / "empty").exists() else "DRAINING"
        return NodeReports((NodeReport("node-1", "127.0.0.1", "here", state=state),))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    home = Home(arguments.home)
    parts = Parts(
        EmbeddedServer(home.store_dir, home.run_dir),
        lambda environ, output, port: ray_head.start_command([sys.executable, "-c", HEAD], environ, output, 20.0),
        (sys.executable, "-c", DEPLOY),
        watch=DrainWatch(NodesByFile(home), period_s=0.05) if os.environ.get("STUB_JOINED") else None,
    )
    try:
        return Supervisor(home, read_settings(arguments.config), parts).run()
    except ServingError as error:
        print(error.message, file=sys.stderr)
        return 1


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
