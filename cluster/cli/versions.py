"""`prism publish`, `deploy`, `scale`, `undeploy`, `unpublish` and `remove`: a version from first to last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cluster import changes, operations
from cluster.artifact import Artifact
from cluster.cli.output import emit, home_option, json_option
from cluster.cli.resources import resource_options, resources
from cluster.cli.session import Session, connect
from cluster.cli.settings_origin import Setting, described, origins, to_json
from cluster.documents import ModelDocument, VersionStatus, spec_of
from cluster.errors import InvalidRequest, OperatorError
from cluster.names import Target

SERVING = ("READY", "ASLEEP")
_UNDER_WAY = ("LOADING", "DEGRADED", *SERVING)
_POLL_S = 0.5
_OLD_FAILURE_S = 15.0  # a failure reported before the change counts once it has stood for so long after it

reason_option = click.option("--reason", default="", help="Why, for the history.")


@click.command(epilog="Example: prism publish flowers artifacts/flowers-int8")
@click.argument("model")
@click.argument("artifact_dir", type=click.Path(path_type=Path))
@click.option("--allow-same", is_flag=True, help="Also if a version with this very artifact exists.")
@reason_option
@home_option
@json_option
def publish(model: str, artifact_dir: Path, allow_same: bool, reason: str, home: Path, as_json: bool) -> None:
    """Make ARTIFACT_DIR the next version of MODEL. Nothing is served by it yet."""
    with connect(home, changing=True) as session:
        artifact = read_artifact(artifact_dir)
        document = operations.publish(
            session.store, session.artifacts, model, artifact, by=session.by, reason=reason, allow_same=allow_same
        )
        record = document.record(changes.newest(document))
        facts = {
            "model": model,
            "version": record.version,
            "digest": record.digest,
            "uri": record.uri,
            "revision": document.revision,
        }
        name = f"{model}:{record.version}"
        emit(
            facts, as_json, f"published {name}  ({record.format} {record.precision}, {record.size_bytes / 1e6:.1f} MB)"
        )


@click.command(epilog="Example: prism deploy flowers:2 --min 1 --max 4 --cpus 1")
@click.argument("target", metavar="MODEL:VERSION")
@click.option("--min", "min_replicas", type=int, help="Fewest replicas; 0: asleep until a request comes.")
@click.option("--max", "max_replicas", type=int, help="Most replicas.")
@resource_options
@click.option("--batch-rows", "max_batch_rows", type=int, help="Most rows of one batch; 0: what the profile says pays.")
@click.option("--max-wait-ms", type=float, help="How long a batch may wait to be filled.")
@click.option("--queue-rows", "max_queue_rows", type=int, help="Most rows that wait in one replica.")
@click.option("--deadline", "default_deadline_s", type=float, help="Seconds, for requests that state no deadline.")
@click.option("--utilisation", "target_utilisation", type=float, help="Share of the time replicas should be busy.")
@click.option("--objective-ms", type=float, help="A row should be answered within so long: it sets how many replicas.")
@click.option("--weight", type=float, help="Its part where versions share what is scarce.")
@click.option("--priority", type=int, help="Larger goes first where the cluster has too little.")
@click.option("--down-after", "down_after_s", type=float, help="Seconds of lower demand before a replica goes.")
@click.option("--idle-after", "idle_after_s", type=float, help="With --min 0: seconds without a request until asleep.")
@click.option("--no-wait", is_flag=True, help="Return at once; the controller goes on.")
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Longest wait, in seconds.")
@click.option(
    "--take-traffic/--no-traffic",
    default=None,
    help="Give it all traffic once it is READY, or none.  [default: only if no version takes traffic yet]",
)
@reason_option
@home_option
@json_option
def deploy(
    target: str,
    max_wait_ms: float | None,
    objective_ms: float | None,
    no_wait: bool,
    timeout_s: float,
    take_traffic: bool | None,
    reason: str,
    home: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Have a version served, or change how it is; without a version, the newest.

    What is not given stays as it is; the first time, what the artifact asks for (prism optimize writes that into it),
    or the default. Waits until the version is READY with it, or says why it FAILED; a version that FAILED is tried
    again at once.
    """
    asked = Target.parse(target)
    overrides = {**resources(options), **{name: value for name, value in options.items() if value is not None}}
    if max_wait_ms is not None:
        overrides["max_wait_s"] = max_wait_ms / 1000
    if objective_ms is not None:
        overrides["objective_s"] = objective_ms / 1000
    if no_wait and take_traffic:
        raise click.UsageError("--take-traffic needs the wait: leave out --no-wait")
    with connect(home, changing=True) as session:
        say: Callable[[str], None] = (lambda _: None) if as_json else click.echo
        document, status, settings = deploy_and_wait(
            session,
            asked,
            overrides,
            reason=reason,
            timeout_s=0.0 if no_wait else timeout_s,
            take_traffic=take_traffic,
            say=say,
        )
        version = operations.version_of(document, asked)
        facts = {**version_facts(document, version, status), "settings": to_json(settings)}
        emit(facts, as_json, f"{document.name}:{version} {_described(status)}")


@click.command(epilog="Example: prism undeploy flowers:1")
@click.argument("target", metavar="MODEL:VERSION")
@click.option("--force", is_flag=True, help="Also with traffic or a label: its share goes to the others.")
@reason_option
@home_option
@json_option
def undeploy(target: str, force: bool, reason: str, home: Path, as_json: bool) -> None:
    """Have a version served no longer. What it has begun, it finishes; it stays published."""
    asked = Target.parse(target)
    with connect(home, changing=True) as session:
        named = operations.version_of(session.store.read(asked.model), asked)
        document = operations.undeploy(session.store, asked, force=force, by=session.by, reason=reason)
        facts = {"model": document.name, "version": named, "revision": document.revision}
        emit(facts, as_json, f"{document.name}:{named} is undeployed; it finishes what it has begun")


@click.command(epilog="Example: prism scale flowers:2 --min 2 --max 8")
@click.argument("target", metavar="MODEL:VERSION")
@click.option("--min", "min_replicas", type=int, help="Fewest replicas; 0: asleep until a request comes.")
@click.option("--max", "max_replicas", type=int, help="Most replicas.")
@click.option("--weight", type=float, help="Its part where versions share what is scarce.")
@click.option("--priority", type=int, help="Larger goes first where the cluster has too little.")
@reason_option
@home_option
@json_option
def scale(
    target: str,
    min_replicas: int | None,
    max_replicas: int | None,
    weight: float | None,
    priority: int | None,
    reason: str,
    home: Path,
    as_json: bool,
) -> None:
    """Change how many replicas a deployed version may have, and its part of what is scarce.

    Returns at once; the controller goes on.
    """
    if all(value is None for value in (min_replicas, max_replicas, weight, priority)):
        raise click.UsageError("give at least one of --min, --max, --weight and --priority")
    asked = Target.parse(target)
    with connect(home, changing=True) as session:
        document = operations.scale(
            session.store,
            asked,
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            weight=weight,
            priority=priority,
            by=session.by,
            reason=reason,
        )
        version = operations.version_of(document, asked)
        bounds = document.record(version).deploy
        assert bounds is not None
        facts = {
            "model": document.name,
            "version": version,
            "min_replicas": bounds.min_replicas,
            "max_replicas": bounds.max_replicas,
            "weight": bounds.weight,
            "priority": bounds.priority,
            "revision": document.revision,
        }
        text = f"{document.name}:{version} has {bounds.min_replicas} to {bounds.max_replicas} replicas"
        emit(facts, as_json, text)


@click.command(epilog="Example: prism unpublish flowers:1")
@click.argument("target", metavar="MODEL:VERSION")
@reason_option
@home_option
@json_option
def unpublish(target: str, reason: str, home: Path, as_json: bool) -> None:
    """Forget a version that is neither deployed nor labelled. Its number is not used again, its artifact is kept."""
    asked = Target.parse(target)
    with connect(home, changing=True) as session:
        named = operations.version_of(session.store.read(asked.model), asked)
        document = operations.unpublish(
            session.store, asked, by=session.by, reason=reason, derived=session.artifacts.derived
        )
        facts = {"model": document.name, "version": named, "revision": document.revision}
        emit(facts, as_json, f"{document.name}:{named} is no longer published")


@click.command(epilog="Example: prism remove flowers --reason 'nobody asks for it'")
@click.argument("model")
@click.option("--force", is_flag=True, help="Also while a version is deployed, whatever traffic it has.")
@reason_option
@home_option
@json_option
def remove(model: str, force: bool, reason: str, home: Path, as_json: bool) -> None:
    """Remove MODEL with all its versions. Its history and its artifacts are kept."""
    with connect(home, changing=True) as session:
        operations.remove_model(
            session.store, model, force=force, by=session.by, reason=reason, derived=session.artifacts.derived
        )
        emit({"model": model, "removed": True}, as_json, f"{model} is removed")


def read_artifact(path: Path) -> Artifact:
    """Raises: InvalidRequest, saying what to do with a file that is no artifact."""
    if not path.exists():
        raise InvalidRequest(f"artifact: {path} does not exist")
    if path.is_file():
        raise InvalidRequest(f"artifact: {path} is a file; make an artifact of it with prism convert, or: prism serve")
    return Artifact.read(path)


def deploy_and_wait(
    session: Session,
    target: Target,
    overrides: dict[str, Any],
    *,
    reason: str = "",
    timeout_s: float,
    take_traffic: bool | None = None,
    say: Callable[[str], None],
) -> tuple[ModelDocument, VersionStatus | None, tuple[Setting, ...]]:
    """Deploy, wait until that is READY or ASLEEP (`timeout_s` 0: do not), then give traffic as `deploy --help` says.

    Returns: The document, the version's status as far as it is known, and where its settings came from.

    Raises: OperatorError with the controller's reason if it FAILED, or was not READY in time.
    """
    store, since_s = session.store, time.time()
    earlier = store.read(target.model)
    document = operations.deploy(store, target, overrides=overrides, by=session.by, reason=reason)
    version = operations.version_of(document, target)
    settings = origins(earlier.versions.get(version), document.record(version), overrides)
    if text := described(settings):
        say(f"{document.name}:{version} is deployed with {text}; the rest by default")
    if not timeout_s:
        return document, store.statuses(document.name).get(version), settings
    status = wait_ready(session, document.name, version, since_s, timeout_s, say)
    exact = Target(document.name, version=version)
    if take_traffic:
        document = operations.promote(store, exact, by=session.by, reason=reason)
        say(f"{exact} takes all traffic")
    elif take_traffic is None and document.split is None:
        document = operations.take_first_traffic(store, exact, by=session.by)
        if document.split is not None and document.split.share_bp(version):
            say(f"{exact} takes all traffic: the first version that is READY")
    return document, status, settings


def wait_ready(
    session: Session, model: str, version: str, since_s: float, timeout_s: float, say: Callable[[str], None]
) -> VersionStatus:
    """The status once the version is READY or ASLEEP as it is deployed now: no replica runs what was before.

    Args:
        since_s: Unix time before the change. A failure reported earlier is an old one, unless it stays.

    Raises: OperatorError if it FAILED, was undeployed by somebody, or time is up.
    """
    name, store = f"{model}:{version}", session.store
    begun = time.monotonic()
    told: list[tuple[object, ...]] = []
    status: VersionStatus | None = None
    while (waited_s := time.monotonic() - begun) < timeout_s:
        record = store.read(model).record(version)
        if record.deploy is None:
            raise OperatorError(f"{name} was undeployed meanwhile (prism history {model})")
        spec, status = spec_of(record), store.statuses(model).get(version)
        if status is not None and status.digest in ("", record.digest):
            if status.state in SERVING and status.spec == spec:
                return status
            known = status.spec == spec or status.at_s >= since_s or waited_s > _OLD_FAILURE_S
            if status.state == "FAILED" and known:
                raise OperatorError(f"{name} FAILED: {status.reason or 'no reason was reported'}")
            progress = (status.state, status.replicas, status.target_replicas, status.reason)
            if progress not in told and status.state in _UNDER_WAY:
                said = any(status.reason == reason for *_, reason in told)
                changing = "; being changed" if status.state in SERVING else ""
                say(f"{name} {_described(replace(status, reason='') if said else status)}{changing}")
                told.append(progress)
        store.wait(min(_POLL_S, max(0.0, timeout_s - waited_s)))
    found = _described(status) if status is not None else "unknown to the controller"
    if status is not None and status.state in SERVING:
        found += ", but not yet with these settings everywhere"
    raise OperatorError(
        f"{name} was not READY within {timeout_s:g} s: {found}; the controller goes on, see prism status"
    )


def version_facts(document: ModelDocument, version: str, status: VersionStatus | None) -> dict[str, Any]:
    """One version for `--json`."""
    return {
        "model": document.name,
        "version": version,
        "state": status.state if status else "REGISTERED",
        "reason": status.reason if status else "",
        "replicas": status.replicas if status else 0,
        "target_replicas": status.target_replicas if status else 0,
        "starting": max(0, status.target_replicas - status.replicas - status.pending) if status else 0,
        "pending": status.pending if status else 0,
        "accelerator": status.accelerator if status else "",
        "scaling": status.scaling if status else "",
        "wants": status.wants if status else 0,
        "granted": status.granted if status else 0,
        "share_bp": document.split.share_bp(version) if document.split else 0,
        "labels": sorted(label for label, at in document.labels.items() if at == version),
        "revision": document.revision,
    }


def _described(status: VersionStatus | None) -> str:
    if status is None:
        return "will be deployed"
    replicas = f", {status.replicas} of {status.target_replicas} replicas" if status.target_replicas else ""
    return f"is {status.state}{replicas}{': ' + one_line(status.reason) if status.reason else ''}"


def one_line(text: str) -> str:
    return " ".join(text.split())
