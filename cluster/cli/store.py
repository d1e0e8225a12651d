"""`prism store`: keep a copy of the desired state, and get going again with a store that has lost some."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cluster.cli.output import emit, home_option, json_option
from cluster.cli.session import Session, connect
from cluster.cli.versions import reason_option
from cluster.errors import OperatorError
from cluster.store.kept import Kept, back_up, read_kept, write_kept
from cluster.store.kept import restore as write_back


@click.group(epilog="Example: prism store backup desired-state.backup  (each command has --help and --json)")
def store() -> None:
    """Back the desired state up, restore it, or take a store that has lost data as it is.

    Controller and gateways go on with what they have read last when the store is another one or older than they know,
    and apply nothing of it until `restore` or `adopt` says what is to be true. Artifacts are not part of a backup.
    """


@store.command(epilog="Example: prism store backup desired-state.backup")
@click.argument("file", type=click.Path(path_type=Path))
@home_option
@json_option
def backup(file: Path, home: Path, as_json: bool) -> None:
    """Write the documents of all models to a new FILE."""
    with connect(home) as session:
        kept = back_up(session.store)
        _write_new(file, kept)
        facts = {"file": str(file), "models": _names(kept), "epoch": kept.epoch}
        emit(facts, as_json, f"{file} holds {_listed(_names(kept))}")


@store.command(epilog="Example: prism store restore desired-state.backup --reason 'the disk broke'")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@reason_option
@home_option
@json_option
def restore(file: Path | None, reason: str, home: Path, as_json: bool) -> None:
    """Write what FILE holds into the store, as new changes.

    Without FILE, it is what was served last before the store lost data. A model that is not among them stays as it is
    in the store.
    """
    with connect(home) as session:
        if file is not None:
            kept = read_kept(file)
        elif session.regressed():
            kept = _last_good(session)
        else:
            raise OperatorError("the store has lost nothing; to go back to a backup, name its file")
        written = write_back(session.store, kept, session.by, reason)
        facts = {"written": list(written), "as_it_was": sorted(set(_names(kept)) - set(written))}
        emit(facts, as_json, f"restored {_listed(list(written))}; what runs follows the store again")


@store.command(epilog="Example: prism store adopt")
@home_option
@json_option
def adopt(home: Path, as_json: bool) -> None:
    """Take the store as it is, though it has lost data.

    Models that it does not know are served no longer. What was known before is kept in a file that `restore` reads.
    """
    with connect(home) as session:
        why = session.regressed()
        if not why:
            emit({"adopted": False}, as_json, "the store has lost nothing; there is nothing to adopt")
            return
        before = _last_good(session)
        file = Path(session.boot.home) / f"before-adopt-{int(time.time() * 1000)}.backup"
        _write_new(file, before)
        session.store.sanction()
        models = list(session.store.models())
        facts = {"adopted": True, "why": why, "models": models, "before": str(file)}
        emit(facts, as_json, f"adopted the store, which holds {_listed(models)}; what was known before is in {file}")


def _last_good(session: Session) -> Kept:
    """What was read last of all that controller and gateways keep. Raises: OperatorError if they keep nothing."""
    found = session.last_good().values()
    if not found:
        raise OperatorError(f"nothing that was served is kept in {session.boot.home}; name a backup")
    return max(found, key=lambda kept: kept.at_s)


def _write_new(file: Path, kept: Kept) -> None:
    if file.exists():
        raise OperatorError(f"{file} is there already; choose another name")
    try:
        write_kept(file, kept)
    except OSError as error:
        raise OperatorError(f"{file} cannot be written: {error.strerror}") from None


def _names(kept: Kept) -> list[str]:
    return sorted(document.name for document in kept.documents)


def _listed(models: list[str]) -> str:
    return ", ".join(models) if models else "no model"
