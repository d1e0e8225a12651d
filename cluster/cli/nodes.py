"""`prism drain`, and what `prism status` shows of the nodes."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cluster.cli.output import emit, home_option, json_option
from cluster.cli.session import connect
from cluster.cli.traffic import columns
from cluster.errors import InvalidRequest, OperatorError
from cluster.nodes import ID_DIGITS, DrainRequest, NodeReport, NodeReports, NodeStore, find_node
from cluster.selectors import ID_LABEL, shown

STALE_S = 30.0  # the controller reports at least every 10 s
_STEP_S = 0.5
_HEAD = ("node", "name", "address", "state", "gateway", "CPUs", "GPUs", "memory GiB", "labels", "replicas")


@click.command(epilog="Example: prism drain 10.0.0.7")
@click.argument("node", metavar="NODE")
@click.option("--no-wait", is_flag=True, help="Return at once; the controller goes on.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Longest wait, in seconds.")
@home_option
@json_option
def drain(node: str, no_wait: bool, timeout_s: float, home: Path, as_json: bool) -> None:
    """Empty a node, so that it may be stopped; NODE is its address, its name, or the beginning of its id.

    Nothing new is placed there, its gateway answers what it has accepted and ends, and replicas end there once others
    have started elsewhere. A node that joined with `prism up` takes itself down then. Draining cannot be undone; the
    node can join again afterwards. The head cannot be drained: the cluster ends with it.
    """
    with connect(home) as session:
        nodes = session.store.nodes
        found = find_node(nodes.reports().nodes, node)
        if found.head:
            raise InvalidRequest(f"node: {named(found)} is the head, with which the cluster ends; prism down stops it")
        nodes.drain(found.id, DrainRequest(session.by, time.time()))
        left = found if no_wait else _wait_drained(nodes, found, timeout_s, as_json)
        facts = {"node": found.id, "address": found.address, "state": "DRAINED" if left is None else "DRAINING"}
        text = f"{named(found)} is drained" if left is None else f"{named(found)} is being drained"
        emit(facts, as_json, text)


def _wait_drained(nodes: NodeStore, node: NodeReport, timeout_s: float, as_json: bool) -> NodeReport | None:
    """None once nothing runs there. Raises: OperatorError, saying what is left after `timeout_s`."""
    asked_s, end_s = time.time(), time.monotonic() + timeout_s
    told = ""
    while True:
        reports = nodes.reports()
        now = next((each for each in reports.nodes if each.id == node.id), None)
        if now is None and reports.at_s > asked_s:
            wished = nodes.drains()
            again = [each for each in reports.nodes if each.address == node.address and each.id in wished]
            if not again:
                return None  # it has left
            node = now = again[0]  # it has joined again, and its supervisor has passed the wish on
            told = ""
        if now is not None and now.state == "DRAINED":
            return None
        left = _what_is_left(now) if now is not None else ""
        if left != told and not as_json:
            click.echo(f"{named(node)}: {left}")
            told = left
        if time.monotonic() > end_s:
            raise OperatorError(
                f"{named(node)} was not empty after {timeout_s:g} s ({left or 'the controller does not report'}); it "
                "goes on draining. What cannot move may find no room on the other nodes: prism status"
            )
        time.sleep(_STEP_S)


def _what_is_left(node: NodeReport) -> str:
    if node.reason:
        return node.reason
    parts = [f"{count} of {version}" for version, count in node.replicas.items()]
    if node.gateway:
        parts.append("the gateway")
    return f"left: {', '.join(parts)}" if parts else "waiting for the controller"


def named(node: NodeReport) -> str:
    """A node for people."""
    return f"{node.id[:ID_DIGITS]} ({node.name}, {node.address})"


def node_facts(reports: NodeReports) -> dict[str, Any]:
    """The nodes for `--json`: `at_s` is when they were reported (seconds since 1970; 0: never)."""
    return {"at_s": reports.at_s, "nodes": [asdict(node) for node in reports.nodes]}


def nodes_text(facts: dict[str, Any], time_s: float) -> list[str]:
    """`node_facts` as a table; nothing if there is no report."""
    if not facts["nodes"]:
        return []
    rows = [
        (
            node["id"][:ID_DIGITS],
            node["name"],
            node["address"] + (" (head)" if node["head"] else ""),
            node["state"],
            f":{node['door_port']} {node['gateway'] or '-'}" if node["door_port"] else "-",
            _used(node, "CPU"),
            _used(node, "GPU"),
            _used(node, "memory", 1 << 30),
            shown({name: value for name, value in node["labels"].items() if name != ID_LABEL}) or "-",
            ", ".join(f"{version} x{count}" for version, count in node["replicas"].items()) or "-",
        )
        for node in facts["nodes"]
    ]
    lines = [columns(_HEAD, rows)]
    lines += [f"warning  {node['address']} {node['reason']}" for node in facts["nodes"] if node["reason"]]
    age_s = time_s - facts["at_s"]
    if age_s > STALE_S:
        lines.append(f"warning  the controller reported these nodes {age_s:.0f} s ago, and nothing since")
    return lines


def _used(node: dict[str, Any], resource: str, unit: int = 1) -> str:
    used, total = (round(node[part].get(resource, 0.0) / unit, 2) for part in ("used", "total"))
    return f"{used:g}/{total:g}" if total else "-"
