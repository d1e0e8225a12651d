"""What the gateways count, asked over HTTP: `/api/v1/overview` of every node that has one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from http.client import HTTPConnection, HTTPException
from typing import Any

from cluster.nodes import NodeReport
from cluster.probe import local_host
from cluster.rates import Rate, Reading, Readings
from cluster.settings import Boot

TIMEOUT_S = 2.0
_THREADS = 16


def addresses(boot: Boot, nodes: Sequence[NodeReport]) -> list[tuple[str, int]]:
    """(host, port) of every gateway, this node's first."""
    own = (local_host(boot.settings.http.host), boot.http_port)
    others = [(node.address, node.door_port) for node in nodes if node.gateway and node.door_port]
    here = {own, (boot.node_ip, boot.http_port), ("127.0.0.1", boot.http_port)}
    return [own, *(each for each in others if each not in here)]


def overviews(where: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """The overview of each gateway that answers, in order."""
    if len(where) == 1:
        found = [_overview(*where[0])]
    else:
        with ThreadPoolExecutor(min(_THREADS, max(1, len(where)))) as threads:
            found = list(threads.map(lambda at: _overview(*at), where))
    return [each for each in found if each is not None]


def _overview(host: str, port: int) -> dict[str, Any] | None:
    connection = HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/api/v1/overview")
        response = connection.getresponse()
        found = json.loads(response.read()) if response.status == 200 else None
        return found if isinstance(found, dict) else None
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()


class Live:
    """Rates between two looks; the first look has none."""

    def __init__(self) -> None:
        self._readings = Readings()

    def take(self, found: Sequence[Mapping[str, Any]], now_s: float) -> dict[tuple[str, str], dict[str, Any]]:
        """By (model, version): a `Rate`'s fields, and the rows that wait in gateways. `now_s`: Unix time."""
        rates = self._readings.take([Reading.of(overview) for overview in found], now_s)
        return {version: {**asdict(rates.get(version, Rate())), "waiting_rows": rows} for version, rows in _rows(found)}


def _rows(found: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, str], int]]:
    rows: dict[tuple[str, str], int] = {}
    for overview in found:
        for model in overview["models"]:
            for version in model["versions"]:
                key = (model["name"], version["version"])
                rows[key] = rows.get(key, 0) + version["waiting_rows"]
    return list(rows.items())


def starts(found: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """By (model, version): how each of its replicas started, the latest last."""
    by_version: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for overview in found:
        for model in overview["models"]:
            for version in model["versions"]:
                known = by_version.setdefault((model["name"], version["version"]), {})
                for start in version.get("starts", ()):
                    known.setdefault(start["replica"], start)
    return {key: sorted(known.values(), key=lambda start: start["ready_s"]) for key, known in by_version.items()}


def start_text(start: Mapping[str, Any]) -> str:
    """`started in 1.9 s: process 0.9, fetch 0.1, ...`."""
    steps = start["steps"]
    parts = ", ".join(f"{step} {seconds:.2f}" for step, seconds in steps.items())
    seen = f"; in a gateway's list {start['seen_after_s']:.2f} s later" if start.get("seen_after_s") is not None else ""
    return f"started in {sum(steps.values()):.1f} s: {parts}{seen}"
