"""`prism status`: what is running, what answers, and what state every version is in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from cluster.cli.gateways import Live, addresses, overviews, start_text, starts
from cluster.cli.nodes import node_facts, nodes_text
from cluster.cli.output import emit, home_option, json_option
from cluster.cli.session import REPAIR, Session, connect, nothing_running
from cluster.cli.traffic import columns, labels_text, split_text, traffic_facts
from cluster.cli.versions import one_line, version_facts
from cluster.cli.watch import show_again
from cluster.documents import ModelDocument, VersionStatus
from cluster.errors import ModelNotFound, OperatorError, StoreUnavailable
from cluster.home import Home
from cluster.nodes import NodeReports
from cluster.probe import gateway_answers
from cluster.store.url import redacted


@click.command(epilog="Example: prism status flowers --watch")
@click.argument("model", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second, with rates, until Ctrl-C.")
@home_option
@json_option
def status(model: str | None, watch: bool, home: Path, as_json: bool) -> None:
    """Show store, Ray, nodes and gateway, and the versions of MODEL, or of all models.

    With --watch also what is answered: requests and errors a second, latency, rows per batch, rows that wait. With
    --watch and --json, one JSON value per line.
    """
    with connect(home) as session:
        place = Home(home)
        if watch:
            live = Live()
            show_again(lambda: gather(session, place, model, live), _text, as_json)
        else:
            facts = gather(session, place, model)
            emit(facts, as_json, _text(facts))


def gather(session: Session, home: Home, model: str | None, live: Live | None = None) -> dict[str, Any]:
    """Everything `status` shows; with `live`, also what was answered since the last call.

    Raises: ModelNotFound if `model` is given and unknown; OperatorError.
    """
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
    reports = NodeReports()
    try:
        reports = session.store.nodes.reports()
        facts["nodes"] = node_facts(reports)
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
    _add_what_gateways_know(facts, addresses(boot, reports.nodes), live)
    return facts


def _add_what_gateways_know(facts: dict[str, Any], where: list[tuple[str, int]], live: Live | None) -> None:
    """`starts` of every version's replicas and, with `live`, its rates."""
    found = overviews(where)
    began = starts(found)
    rates = live.take(found, time.time()) if live is not None else {}
    for model in facts["models"]:
        for version in model["versions"]:
            key = (version["model"], version["version"])
            version["starts"] = began.get(key, [])
            if live is not None:
                version["live"] = rates.get(key)


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
        watched = any("live" in version for version in model["versions"])
        head = ("  version", "state", "replicas", "traffic", *(_LIVE if watched else ()), "model", "size", "reason")
        lines.append(columns(head, [_row(version, watched) for version in model["versions"]]))
        lines += [f"  :{v['version']} {start_text(v['starts'][-1])}" for v in model["versions"] if v["starts"]]
        lines += [f"  :{v['version']} replicas {one_line(v['scaling'])}" for v in model["versions"] if v["scaling"]]
    return "\n".join(lines)


_LIVE = ("req/s", "err/s", "p50 ms", "p99 ms", "rows/batch", "waiting")


def _row(version: dict[str, Any], watched: bool) -> tuple[str, ...]:
    accelerator = version["accelerator"]
    return (
        f"  :{version['version']}",
        version["state"],
        _replicas(version) if version["deployed"] else "-",
        f"{version['share_bp'] / 100:g}%",
        *(_live(version["live"]) if watched else ()),
        f"{version['format']} {version['precision']}" + (f" on {accelerator}" if accelerator else ""),
        f"{version['size_bytes'] / 1e6:.1f} MB",
        one_line(version["reason"]),
    )


def _replicas(version: dict[str, Any]) -> str:
    """`2/4 (1 starting, 1 pending)`."""
    counts = [f"{version[word]} {word}" for word in ("starting", "pending") if version[word]]
    return f"{version['replicas']}/{version['target_replicas']}{' (' + ', '.join(counts) + ')' if counts else ''}"


def _live(rate: dict[str, Any] | None) -> tuple[str, ...]:
    if rate is None:
        return ("-",) * len(_LIVE)
    return (
        f"{rate['requests_per_s']:.1f}",
        f"{rate['errors_per_s']:.1f}",
        *("-" if rate[name] is None else f"{rate[name] * 1000:.2f}" for name in ("p50_s", "p99_s")),
        "-" if rate["batch_rows"] is None else f"{rate['batch_rows']:.1f}",
        str(rate["waiting_rows"]),
    )
