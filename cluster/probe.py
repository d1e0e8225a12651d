"""Whether a gateway answers, asked from the machine it runs on."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException


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
