"""`prism status`: what is running, what answers, and what state every version is in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from cluster.cli.nodes import node_facts, nodes_text
from cluster.cli.output import emit, home_option, json_option
from cluster.cli.session import REPAIR, Session, connect, nothing_running
from cluster.cli.traffic import columns, labels_text, split_text, traffic_facts
from cluster.cli.versions import one_line, version_facts
from cluster.documents import ModelDocument, VersionStatus
from cluster.errors import ModelNotFound, OperatorError, StoreUnavailable
from cluster.home import Home
from cluster.nodes import NodeReports
from cluster.probe import gateway_answers
from cluster.store.url import redacted


@click.command(epilog="Example: prism status flowers --watch")
@click.argument("model", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@home_option
@json_option
def status(model: str | None, watch: bool, home: Path, as_json: bool) -> None:
    """Show store, Ray and gateway, and the versions of MODEL, or of all models."""
    with connect(home) as session:
        while True:
            facts = gather(session, Home(home), model)
            if watch and not as_json:
                click.clear()
            emit(facts, as_json, _text(facts))
            if not watch:
                return
            time.sleep(1.0)


def gather(session: Session, home: Home, model: str | None) -> dict[str, Any]:
    """Everything `status` shows. Raises: ModelNotFound if `model` is given and unknown; OperatorError."""
    boot = session.boot
    state = home.supervisor()
    facts: dict[str, Any] = {
        "home": boot.home,
        "phase": state.phase if state is not None else "unknown",
        "error": state.error if state is not None else nothing_running(home),
        "gateway": {"url": session.url, "answers": gateway_answers(boot.settings.http.host, boot.http_port)},
        "ray": {"address": boot.ray_address},
        "store": {"url": redacted(boot.store_url), "answers": True, "regressed": "", "warnings": []},
        "nodes": node_facts(NodeReports()),
        "models": [],
    }
    try:
        facts["nodes"] = node_facts(session.store.nodes.reports())
        facts["store"] |= {"regressed": session.regressed(), "warnings": list(session.store.durability_warnings())}
        names = (model,) if model else session.store.models()
        for name in names:
            try:
                facts["models"].append(_model(session.store.read(name), session.store.statuses(name)))
            except ModelNotFound:
                if model:  # otherwise it was removed a moment ago
                    raise
    except StoreUnavailable as error:
        if model:
            raise OperatorError(error.message) from None
        facts["store"] |= {"answers": False, "error": error.message}
    return facts


def _model(document: ModelDocument, statuses: dict[str, VersionStatus]) -> dict[str, Any]:
    versions = []
    for version in sorted(document.versions, key=int):
        record = document.versions[version]
        versions.append(
            {
                **version_facts(document, version, statuses.get(version)),
                "deployed": record.deploy is not None,
                "format": record.format,
                "precision": record.precision,
                "size_bytes": record.size_bytes,
            }
        )
    return {
        **traffic_facts(document),
        "traffic": split_text(document),
        "labels_text": labels_text(document),
        "versions": versions,
    }


def _text(facts: dict[str, Any]) -> str:
    gateway, store = facts["gateway"], facts["store"]
    lines = [
        f"home     {facts['home']}  ({facts['phase']}{': ' + facts['error'] if facts['error'] else ''})",
        f"gateway  {gateway['url']}  {'answers' if gateway['answers'] else 'DOES NOT ANSWER'}",
        f"store    {store['url']}  {'answers' if store['answers'] else 'DOES NOT ANSWER: ' + store['error']}",
        f"Ray      {facts['ray']['address']}",
    ]
    if store["regressed"]:
        lines[2] += f"; regressed: {store['regressed']}, so nothing of it is applied; {REPAIR}"
    lines += [f"warning  {warning}" for warning in store["warnings"]]
    nodes = nodes_text(facts["nodes"], time.time())
    lines += ["", *nodes] if nodes else []
    if not facts["models"] and store["answers"]:
        lines += ["", "no models yet (prism serve FILE, or prism publish MODEL ARTIFACT_DIR)"]
    for model in facts["models"]:
        labels = f"; {model['labels_text']}" if model["labels_text"] else ""
        lines += ["", f"{model['model']}  {model['traffic']}{labels}  (revision {model['revision']})"]
        rows = [
            (
                f"  :{version['version']}",
                version["state"],
                f"{version['replicas']}/{version['target_replicas']}" if version["deployed"] else "-",
                f"{version['share_bp'] / 100:g}%",
                f"{version['format']} {version['precision']}",
                f"{version['size_bytes'] / 1e6:.1f} MB",
                one_line(version["reason"]),
            )
            for version in model["versions"]
        ]
        lines.append(columns(("  version", "state", "replicas", "traffic", "model", "size", "reason"), rows))
    return "\n".join(lines)
