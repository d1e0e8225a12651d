"""Whether a gateway answers, asked from the machine it runs on.

`python -m cluster.probe --boot FILE` waits for the gateway of a node that has joined: exit code 0 once it answers, else
one line on stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from http.client import HTTPConnection, HTTPException

from cluster.settings import Boot

WAIT_S = 120.0


def local_host(host: str) -> str:
    """Where a client on this machine reaches a server that listens on `host`, which may mean every address."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def http_url(host: str, port: int) -> str:
    """The URL under which a client on this machine reaches a server that listens on `host`."""
    local = local_host(host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


def gateway_answers(host: str, port: int, timeout_s: float = 2.0) -> bool:
    """Whether the gateway that listens on `host` says that it is healthy; False if it drains, or nothing is there."""
    connection = HTTPConnection(local_host(host), port, timeout=timeout_s)
    try:
        connection.request("GET", "/-/healthz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--boot", required=True)
    boot = Boot.read(parser.parse_args().boot)
    if not boot.settings.ray.idle_gateway:
        return 0  # it comes with the first replica
    deadline_s = time.monotonic() + WAIT_S
    while not gateway_answers(boot.settings.http.host, boot.http_port):
        if time.monotonic() > deadline_s:
            print(
                f"the node joined {boot.ray_address}, but no gateway was started on it within {WAIT_S:.0f} s; "
                "prism status on the head says why",
                file=sys.stderr,
            )
            return 1
        time.sleep(0.2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
