"""A real supervisor with a real store and door; Ray and what runs on it are stand-ins."""

import argparse
import os
import sys
from pathlib import Path

from cluster import ray_head
from cluster.errors import ServingError
from cluster.home import Home
from cluster.parts import Parts
from cluster.settings import read_settings
from cluster.store.embedded import EmbeddedServer
from cluster.supervisor import Supervisor

HEAD = """
import os, subprocess, sys, time
ready = int(sys.argv[-1])
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={})  # an agent that lost its mark
os.write(ready, b"127.0.0.1:1\\n")
os.close(ready)
time.sleep(600)
"""
DEPLOY = "import os, sys; sys.exit(os.environ.get('STUB_DEPLOY') or 0)"


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
    )
    try:
        return Supervisor(home, read_settings(arguments.config), parts).run()
    except ServingError as error:
        print(error.message, file=sys.stderr)
        return 1


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
