"""What an operator's verbs do to a model's document: pure functions, document in, document out.

Traffic and labels move only to a version that is READY: deployed, and reported by the controller as verified and
started once with the artifact it has now. Moving traffic *away* from a version asks nothing of it.

A rollback undoes steps of traffic as an editor undoes typing. Every change of the split, and every promotion, is a
step; a rollback puts back the split and the `stable` label as they were before the latest step that has not been
undone yet, so that a second one goes further back instead of forward again, and the next ordinary step starts anew
from there. Other labels stay where they are. `cluster.operations` applies all this to a version store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import msgspec

from cluster.artifact import Artifact
from cluster.documents import AuditEntry, DeploySettings, ModelDocument, VersionRecord, VersionStatus
from cluster.errors import Conflict, InvalidRequest
from cluster.names import check_label
from cluster.splits import WHOLE_BP, Arm, TrafficSplit
from cluster.store.commits import REMOVE

STABLE = "stable"
PROMOTE, ROLLBACK = "promote", "rollback"
_SERVING = ("READY", "DEGRADED", "ASLEEP")

# What follows from the model and how it was measured. Where it may run and what it is worth is the operator's to say.
_ASKABLE = {
    *("num_cpus", "num_gpus", "accelerator", "memory_bytes", "min_replicas", "max_replicas"),
    *("max_batch_rows", "max_wait_s", "max_queue_rows", "default_deadline_s", "objective_s", "target_utilisation"),
}

Statuses = Mapping[str, VersionStatus]


def version_record(
    artifact: Artifact, uri: str, size_bytes: int, *, by: str, created_s: float, version: str = "1", device: str = "cpu"
) -> VersionRecord:
    """The record of a version that is `artifact`, which lies at `uri`; costs and memory are those of `device`.

    Raises: InvalidRequest if the artifact asks for settings that there are not.
    """
    manifest = artifact.manifest
    return VersionRecord(
        version=version,
        uri=uri,
        digest=artifact.digest,
        signature=manifest.signature,
        format=manifest.format,
        precision=manifest.precision,
        size_bytes=size_bytes,
        created_s=created_s,
        by=by,
        costs=artifact.cost_curve(device),
        memory_bytes=artifact.memory_bytes(device),
        class_labels=manifest.labels,
        serving=asked_by(artifact),
    )


def asked_by(artifact: Artifact) -> dict[str, Any]:
    """The settings that the artifact asks to be served with (`extra.serving` of its manifest), checked.

    Raises: InvalidRequest, naming what is no such setting or out of bounds.
    """
    asked = artifact.manifest.extra.get("serving", {})
    unknown = sorted(set(asked) - _ASKABLE) if isinstance(asked, dict) else [repr(asked)]
    if unknown:
        raise InvalidRequest(
            f"manifest.extra.serving: expected some of {', '.join(sorted(_ASKABLE))}, got {unknown[0]}"
        )
    try:
        msgspec.convert(asked, DeploySettings)
    except (msgspec.ValidationError, InvalidRequest) as error:
        raise InvalidRequest(f"manifest.extra.serving: {error}") from None
    return dict(asked)


def newest(document: ModelDocument) -> str:
    """The version published last of those that are still there. Raises: Conflict if there is none."""
    if not document.versions:
        raise Conflict(f"{document.name}: no version is published (prism publish {document.name} ARTIFACT)")
    return max(document.versions, key=int)


def check_new(document: ModelDocument, digest: str) -> None:
    """Raises: Conflict if a version with this artifact is published already."""
    for version, record in document.versions.items():
        if record.digest == digest:
            raise Conflict(
                f"{document.name}: this artifact is version {version} already; deploy that, or publish it once more "
                "with --allow-same"
            )


def published(document: ModelDocument, record: VersionRecord) -> ModelDocument:
    """With `record` as the next version, whatever number it carries. Numbers are never used twice."""
    number = document.next_version
    added = replace(document, next_version=number + 1)
    return added.with_record(replace(record, version=str(number)))


def unpublished(document: ModelDocument, version: str) -> ModelDocument:
    """Without `version`, whose number stays used. Raises: Conflict while it is deployed or labelled."""
    name = f"{document.name}:{version}"
    if document.record(version).deploy is not None:
        raise Conflict(f"{name} is deployed; undeploy it first (prism undeploy {name})")
    _refuse_labelled(document, version)
    rest = {number: record for number, record in document.versions.items() if number != version}
    return replace(document, versions=rest)


def deployed(
    document: ModelDocument, version: str, settings: DeploySettings, statuses: Statuses = MappingProxyType({})
) -> ModelDocument:
    """With `version` served as `settings` say, whose `attempt` is ours to count.

    It grows when the version FAILED and nothing else changes, so that something does.

    Raises: InvalidRequest for a provider that a version of this format does not have.
    """
    record = document.record(version)
    if settings.provider != "auto" and record.format != "onnx":
        raise InvalidRequest(
            f"deploy.provider: expected auto for a version of format {record.format}, got {settings.provider}"
        )
    if record.deploy is not None:
        settings = replace(settings, attempt=record.deploy.attempt)
        status = statuses.get(version)
        failed = status is not None and status.state == "FAILED" and status.digest == record.digest
        if failed and settings == record.deploy:
            settings = replace(settings, attempt=settings.attempt + 1)
    return document.with_record(replace(record, deploy=settings))


def undeployed(document: ModelDocument, version: str, force: bool = False) -> ModelDocument:
    """With `version` served no longer.

    With `force`, its labels go with it, and its share of the traffic is divided between the other versions that have
    one, in proportion; if there is none, the model takes no traffic.

    Raises: Conflict while it has traffic or a label, unless forced.
    """
    name = f"{document.name}:{version}"
    record = document.record(version)
    if record.deploy is None:
        raise Conflict(f"{name} is not deployed")
    share_bp = document.split.share_bp(version) if document.split else 0
    if not force:
        if share_bp:
            raise Conflict(
                f"{name} takes {share_bp / 100:g} % of the traffic; move that first (prism split {document.name} "
                "VERSION=PERCENT,...), or undeploy it with --force"
            )
        _refuse_labelled(document, version)
    labels = {label: at for label, at in document.labels.items() if at != version}
    return replace(document, labels=labels, split=_without(document.split, version)).with_record(
        replace(record, deploy=None)
    )


def scaled(
    document: ModelDocument,
    version: str,
    min_replicas: int | None,
    max_replicas: int | None,
    weight: float | None = None,
    priority: int | None = None,
) -> ModelDocument:
    """With other bounds for the number of replicas, or another part of what is scarce (None: as it is).

    Raises: Conflict if it is not deployed.
    """
    settings = document.record(version).deploy
    if settings is None:
        name = f"{document.name}:{version}"
        raise Conflict(f"{name} is not deployed, so it has no replicas to scale (prism deploy {name})")
    least = settings.min_replicas if min_replicas is None else min_replicas
    most = settings.max_replicas if max_replicas is None else max_replicas
    part = settings.weight if weight is None else weight
    rank = settings.priority if priority is None else priority
    bounds = replace(settings, min_replicas=least, max_replicas=most, weight=part, priority=rank)
    return deployed(document, version, bounds)


def split_to(document: ModelDocument, split: TrafficSplit, statuses: Statuses) -> ModelDocument:
    """With traffic divided as `split` says.

    Versions that have traffic already keep their order and new ones come after them, whatever order they were written
    in, and the salt stays while traffic is divided: a key that has met a version that grows keeps meeting it. Dividing
    what went to one version begins a new rollout with a salt of its own, so that not the same keys go first each time.
    A salt in `split` wins.

    Raises: Conflict if the share of a version grows that is not READY.
    """
    before = document.split
    _check_growing(document, split, statuses)
    order = [arm.version for arm in before.arms] if before else []
    arms = sorted(
        (arm for arm in split.arms if arm.share_bp),
        key=lambda arm: order.index(arm.version) if arm.version in order else len(order),
    )
    salt = split.salt or (before.salt if before and len(before.arms) > 1 else f"{document.name}/{document.revision}")
    after = TrafficSplit(tuple(arms), salt)
    if before is not None and len(arms) == 1 and before.arms == after.arms:
        after = before  # one version with everything: the salt says nothing
    return replace(document, split=after)


def promoted(document: ModelDocument, version: str, statuses: Statuses) -> ModelDocument:
    """With all traffic and the label `stable` at `version`. Raises: Conflict if it is not READY."""
    check_ready(document, version, statuses, "be promoted")
    moved = split_to(document, TrafficSplit.all_to(version), statuses)
    return replace(moved, labels={**moved.labels, STABLE: version})


def labelled(document: ModelDocument, label: str, version: str, statuses: Statuses) -> ModelDocument:
    """With `label` at `version`. Raises: Conflict if it is not READY."""
    check_label(label)
    check_ready(document, version, statuses, f"carry the label {label!r}")
    return replace(document, labels={**document.labels, label: version})


def unlabelled(document: ModelDocument, label: str) -> ModelDocument:
    """Without `label`. Raises: Conflict if there is no such label."""
    if label not in document.labels:
        have = ", ".join(sorted(document.labels)) or "none"
        raise Conflict(f"{document.name} has no label {label!r} (there are: {have})")
    return replace(document, labels={name: at for name, at in document.labels.items() if name != label})


def check_ready(document: ModelDocument, version: str, statuses: Statuses, to: str) -> None:
    """Raises: Conflict, saying why `version` is not READY and what can be done, as "... cannot `to`: ..."."""
    record = document.record(version)
    name = f"{document.name}:{version}"
    status = statuses.get(version)
    if record.deploy is None:
        why = f"it is not deployed (prism deploy {name})"
    elif status is None or status.digest != record.digest:
        why = "nothing is known of it yet; wait until it is READY (prism status)"
    elif status.state == "FAILED":
        why = f"it FAILED: {status.reason or 'no reason was given'}"
    elif not status.ready_once or status.state not in _SERVING:
        why = f"it is {status.state}; wait until it is READY (prism status)"
    else:
        return
    raise Conflict(f"{name} cannot {to}: {why}")


def rolled_back(
    document: ModelDocument, history: Sequence[AuditEntry], statuses: Statuses, to_revision: int | None = None
) -> ModelDocument:
    """With the split and the `stable` label as they were at an earlier revision.

    Args:
        document: The current document.
        history: Its changes, newest first.
        statuses: By version.
        to_revision: Which revision; without one, as they were before the latest step not yet undone.

    Raises:
        Conflict: there is nothing to go back to, or a version that would get traffic is not READY.
        InvalidRequest: no such revision.
    """
    target = _at(document, history, to_revision) if to_revision is not None else step_before(document, history)
    then = target.document
    if then.split is None:
        raise Conflict(f"{document.name}: no version took traffic yet at revision {target.revision}")
    wanted = set(then.split.versions) | ({then.labels[STABLE]} if STABLE in then.labels else set())
    for version in sorted(wanted, key=int):
        record = document.versions.get(version)
        name = f"{document.name}:{version}"
        told = f"{document.name} cannot go back to revision {target.revision} (split {then.split}): version {version}"
        other = "choose another revision with --to-revision (prism history)"
        if record is None or record.digest != then.versions[version].digest:
            raise Conflict(f"{told} is no longer published; {other}")
        if record.deploy is None:
            raise Conflict(f"{told} is no longer deployed; deploy it first (prism deploy {name}), or {other}")
    _check_growing(document, then.split, statuses)
    labels = {label: version for label, version in document.labels.items() if label != STABLE}
    if STABLE in then.labels:
        labels[STABLE] = then.labels[STABLE]
        if document.labels.get(STABLE) != labels[STABLE]:
            check_ready(document, labels[STABLE], statuses, f"carry the label {STABLE!r}")
    arms = tuple(arm for arm in then.split.arms if arm.share_bp)
    return replace(document, split=replace(then.split, arms=arms), labels=labels)


def step_before(document: ModelDocument, history: Sequence[AuditEntry]) -> AuditEntry:
    """The entry whose traffic was in force before the latest step not yet undone.

    Raises: Conflict if there is no earlier one in which a version took traffic.
    """
    steps: list[AuditEntry] = []
    for entry in reversed(_of_this_model(history)):
        if not steps:
            steps = [entry]
        elif entry.operation == ROLLBACK:
            same = [i for i, step in enumerate(steps) if _traffic(step) == _traffic(entry)]
            steps = [*steps[: same[-1] if same else len(steps)], entry]
        elif entry.operation == PROMOTE or _arms(entry) != _arms(steps[-1]):
            steps.append(entry)
        else:
            steps[-1] = entry  # the same traffic, later
    if len(steps) < 2 or steps[-2].document.split is None:
        raise Conflict(f"{document.name}: there is no earlier traffic to go back to (prism history {document.name})")
    return steps[-2]


def _at(document: ModelDocument, history: Sequence[AuditEntry], revision: int) -> AuditEntry:
    entries = _of_this_model(history)
    for entry in entries:
        if entry.revision == revision:
            return entry
    known = f"{entries[-1].revision} to {entries[0].revision}" if entries else "none"
    raise InvalidRequest(f"to_revision: expected one of the history of {document.name} ({known}), got {revision}")


def _of_this_model(history: Sequence[AuditEntry]) -> list[AuditEntry]:
    """Entries since the model was last made, newest first: what was removed is not gone back to."""
    entries: list[AuditEntry] = []
    for entry in history:
        if entry.operation == REMOVE:
            break
        entries.append(entry)
    return entries


def _arms(entry: AuditEntry) -> frozenset[Arm] | None:
    split = entry.document.split
    return None if split is None else frozenset(split.arms)


def _traffic(entry: AuditEntry) -> tuple[frozenset[Arm] | None, str | None]:
    return _arms(entry), entry.document.labels.get(STABLE)


def _check_growing(document: ModelDocument, split: TrafficSplit, statuses: Statuses) -> None:
    """Raises: Conflict if a version whose share grows is not READY."""
    for arm in split.arms:
        if arm.share_bp > (document.split.share_bp(arm.version) if document.split else 0):
            check_ready(document, arm.version, statuses, "take traffic")


def _refuse_labelled(document: ModelDocument, version: str) -> None:
    for label, at in sorted(document.labels.items()):
        if at == version:
            raise Conflict(
                f"{document.name}:{version} carries the label {label!r}; move it first "
                f"(prism label {document.name}@{label} VERSION)"
            )


def _without(split: TrafficSplit | None, version: str) -> TrafficSplit | None:
    """`split` with the share of `version` divided between the others in proportion; None if there is no other."""
    if split is None or not split.share_bp(version):
        return split
    rest = [arm for arm in split.arms if arm.version != version and arm.share_bp]
    total = sum(arm.share_bp for arm in rest)
    if not total:
        return None
    arms = [Arm(arm.version, arm.share_bp * WHOLE_BP // total) for arm in rest]
    left = WHOLE_BP - sum(arm.share_bp for arm in arms)
    arms = [Arm(arm.version, arm.share_bp + (1 if i < left else 0)) for i, arm in enumerate(arms)]
    return TrafficSplit(tuple(arms), split.salt)
