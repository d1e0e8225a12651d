"""`prism split`, `label`, `promote`, `rollback` and `history`: which version answers, since when, and why."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from cluster import operations
from cluster.cli.output import emit, home_option, json_option
from cluster.cli.session import connect
from cluster.cli.versions import reason_option
from cluster.documents import AuditEntry, ModelDocument
from cluster.errors import InvalidRequest
from cluster.names import Target
from cluster.splits import TrafficSplit


@click.command(epilog="Example: prism split flowers 1=90,2=10")
@click.argument("model")
@click.argument("shares", metavar="VERSION=PERCENT,...")
@reason_option
@home_option
@json_option
def split(model: str, shares: str, reason: str, home: Path, as_json: bool) -> None:
    """Divide MODEL's traffic between READY versions, in percent."""
    with connect(home, changing=True) as session:
        wanted = TrafficSplit.parse(shares)
        _print(operations.split(session.store, model, wanted, by=session.by, reason=reason), as_json)


@click.command(epilog="Example: prism label flowers@canary 2")
@click.argument("target", metavar="MODEL@LABEL")
@click.argument("version", required=False)
@click.option("--remove", is_flag=True, help="Take the label away instead.")
@reason_option
@home_option
@json_option
def label(target: str, version: str | None, remove: bool, reason: str, home: Path, as_json: bool) -> None:
    """Let MODEL@LABEL mean a READY version."""
    asked = Target.parse(target)
    if asked.label is None:
        raise InvalidRequest(f"label: expected MODEL@LABEL, got {target!r}")
    if remove == (version is not None):
        raise click.UsageError("give either a version, or --remove")
    with connect(home, changing=True) as session:
        store, by = session.store, session.by
        if version is None:
            document = operations.remove_label(store, asked.model, asked.label, by=by, reason=reason)
        else:
            exact = Target.parse(f"{asked.model}:{version}")
            document = operations.set_label(store, exact, asked.label, by=by, reason=reason)
        _print(document, as_json)


@click.command(epilog="Example: prism promote flowers:2")
@click.argument("target", metavar="MODEL:VERSION")
@reason_option
@home_option
@json_option
def promote(target: str, reason: str, home: Path, as_json: bool) -> None:
    """Give a READY version all traffic, and the label `stable`."""
    with connect(home, changing=True) as session:
        _print(operations.promote(session.store, Target.parse(target), by=session.by, reason=reason), as_json)


@click.command(epilog="Example: prism rollback flowers")
@click.argument("model")
@click.option("--to-revision", type=int, help="Put the traffic back as it was at this revision (prism history).")
@reason_option
@home_option
@json_option
def rollback(model: str, to_revision: int | None, reason: str, home: Path, as_json: bool) -> None:
    """Undo the latest step of MODEL's traffic that is not yet undone; again: the one before."""
    with connect(home, changing=True) as session:
        document = operations.rollback(session.store, model, to_revision=to_revision, by=session.by, reason=reason)
        _print(document, as_json)


@click.command(epilog="Example: prism history flowers --limit 5")
@click.argument("model")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many, newest first.")
@home_option
@json_option
def history(model: str, limit: int, home: Path, as_json: bool) -> None:
    """Who changed what of MODEL, when and why; newest first."""
    with connect(home) as session:
        entries = session.store.history(model, limit)
        emit({"model": model, "entries": [_entry(entry) for entry in entries]}, as_json, _table(entries))


def split_text(document: ModelDocument) -> str:
    """The split as people write it, or `no traffic`."""
    if document.split is None:
        return "no traffic"
    return ", ".join(f"{arm.version}={arm.share_bp / 100:g}%" for arm in document.split.arms)


def labels_text(document: ModelDocument) -> str:
    return ", ".join(f"{name}->{version}" for name, version in sorted(document.labels.items()))


def _print(document: ModelDocument, as_json: bool) -> None:
    labels = labels_text(document)
    text = f"{document.name}: {split_text(document)}{'; ' + labels if labels else ''}  (revision {document.revision})"
    emit(traffic_facts(document), as_json, text)


def traffic_facts(document: ModelDocument) -> dict[str, Any]:
    """Who takes traffic, for `--json`."""
    return {
        "model": document.name,
        "revision": document.revision,
        "split": {arm.version: arm.share_bp / 100 for arm in document.split.arms} if document.split else None,
        "labels": dict(sorted(document.labels.items())),
    }


def _entry(entry: AuditEntry) -> dict[str, Any]:
    return {
        **traffic_facts(entry.document),
        "revision": entry.revision,
        "operation": entry.operation,
        "by": entry.by,
        "at": datetime.fromtimestamp(entry.at_s).astimezone().isoformat(timespec="seconds"),
        "reason": entry.reason,
        "deployed": sorted((v for v, r in entry.document.versions.items() if r.deploy is not None), key=int),
    }


def _table(entries: tuple[AuditEntry, ...]) -> str:
    rows = [
        (
            str(entry.revision),
            datetime.fromtimestamp(entry.at_s).strftime("%Y-%m-%d %H:%M:%S"),
            entry.by,
            entry.operation,
            split_text(entry.document),
            labels_text(entry.document),
            entry.reason,
        )
        for entry in entries
    ]
    return columns(("revision", "when", "who", "what", "traffic", "labels", "why"), rows)


def columns(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A plain table, as wide as it needs."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows))
    return "\n".join(line.rstrip() for line in lines)
