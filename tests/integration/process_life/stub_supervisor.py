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
lives = os.path.join(sys.argv[1], "lives")
open(lives, "a").write("x")
os.write(ready, b"127.0.0.1:1 node-%d\\n" % os.path.getsize(lives))
os.close(ready)
time.sleep(600)
"""
DEPLOY = """
import os, sys, time
while os.path.exists("deploying"):
    time.sleep(0.02)
if os.path.exists("earlier"):
    sys.exit("nothing can be deployed on the earlier one")
sys.exit(os.environ.get("STUB_DEPLOY") or 0)
"""


class NodesByFile:
    """What the store would say: nodes named in `HOME/drain` are to be drained; they are empty once `HOME/empty` exists.

    Ray's first start makes node-1, the next one node-2.
    """

    def __init__(self, home: Home) -> None:
        self._wishes, self._empty = home.path / "drain", home.path / "empty"

    def drains(self):
        named = self._wishes.read_text().split() if self._wishes.exists() else ()
        return {name: DrainRequest("ada", 1.0) for name in named}

    def drain(self, node_id, request):
        with self._wishes.open("a") as wishes:
            wishes.write(f"{node_id}\n")

    def reports(self):
        state = "DRAINED" if self._empty.exists() else "DRAINING"
        return NodeReports(tuple(NodeReport(name, "127.0.0.1", "here", state=state) for name in self.drains()))


class BootByFile:
    """While `HOME/earlier` is there, an earlier Ray cluster is gone on with."""

    def __init__(self, home: Home) -> None:
        self._earlier, self._settled = home.path / "earlier", home.path / "settled"

    def told(self):
        return "Ray ready, the earlier one" if self._earlier.exists() else "Ray ready"

    def give_up(self, why):
        there = self._earlier.exists()
        self._earlier.unlink(missing_ok=True)
        return there

    def settle(self):
        self._settled.touch()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    home = Home(arguments.home)
    parts = Parts(
        EmbeddedServer(home.store_dir, home.run_dir),
        lambda environ, output, port: ray_head.start_command(
            [sys.executable, "-c", HEAD, str(home)], environ, output, 20.0
        ),
        (sys.executable, "-c", DEPLOY),
        watch=DrainWatch(NodesByFile(home), period_s=0.05) if os.environ.get("STUB_JOINED") else None,
        boots=BootByFile(home),
    )
    try:
        return Supervisor(home, read_settings(arguments.config), parts).run()
    except ServingError as error:
        print(error.message, file=sys.stderr)
        return 1


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
