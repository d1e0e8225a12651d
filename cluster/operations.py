"""An operator's verbs, applied to the version store. The command line and the control API both call these.

Each reads the model's document, asks `cluster.changes` for the next one, and swaps it in; a change that changes
nothing is not written. All take `by` (who) and `reason` for the audit, and `expect_revision`: with it, the change is
made only to that revision. Without it, a change that lost a race is worked out again from what the other writer left
and tried again, except where the other writer moved traffic and this change moves traffic too: then somebody has to
look first, and `StaleRevision` says at what.

All return the document as it is in the store afterwards, and raise what `cluster.changes` and the store raise:
ModelNotFound, Conflict, InvalidRequest, StaleRevision, StoreUnavailable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cluster import changes
from cluster.artifact import Artifact
from cluster.artifacts_store import ArtifactStore, size_bytes
from cluster.changes import PROMOTE, ROLLBACK
from cluster.derived import DerivedFiles
from cluster.documents import DeploySettings, ModelDocument
from cluster.errors import Conflict, InvalidRequest, ModelNotFound, StaleRevision
from cluster.names import Target, check_model
from cluster.splits import TrafficSplit
from cluster.store import VersionStore
from cluster.store.commits import MAX_HISTORY, lost_race

ATTEMPTS = 10

Change = Callable[[ModelDocument], ModelDocument]


def publish(
    store: VersionStore,
    artifacts: ArtifactStore,
    model: str,
    artifact: Artifact,
    *,
    by: str,
    reason: str = "",
    allow_same: bool = False,
    expect_revision: int | None = None,
) -> ModelDocument:
    """Copy `artifact` into the artifact store and make it the model's next version, making the model if need be.

    `changes.newest` of the result is the new version.

    Raises: Conflict if a version with this artifact is there already, unless `allow_same`.
    """
    check_model(model)

    def check(document: ModelDocument) -> None:
        if not allow_same:
            changes.check_new(document, artifact.digest)

    check(_read_or_new(store, model))  # before anything is copied
    changes.asked_by(artifact)
    uri = artifacts.put(artifact)
    record = changes.version_record(artifact, uri, size_bytes(artifact), by=by, created_s=time.time())

    def change(document: ModelDocument) -> ModelDocument:
        check(document)
        return changes.published(document, record)

    return _apply(store, model, "publish", change, by, reason, expect_revision, make=True)


def unpublish(
    store: VersionStore,
    target: Target,
    *,
    by: str,
    reason: str = "",
    expect_revision: int | None = None,
    derived: DerivedFiles | None = None,
) -> ModelDocument:
    """Forget a version that is neither deployed nor labelled. Its artifact stays where it is; what machines made of
    it for themselves is removed from `derived`, unless another version has the same artifact."""
    digests: list[str] = []

    def change(document: ModelDocument) -> ModelDocument:
        version = _named(document, target)
        digests[:] = [document.record(version).digest]
        return changes.unpublished(document, version)

    document = _apply(store, target.model, "unpublish", change, by, reason, expect_revision)
    _remove_derived(store, derived, digests)
    return document


def deploy(
    store: VersionStore,
    target: Target,
    settings: DeploySettings | None = None,
    *,
    overrides: dict[str, Any] | None = None,
    by: str,
    reason: str = "",
    expect_revision: int | None = None,
) -> ModelDocument:
    """Have a version served: `target`'s, or the newest one of the model.

    A version that FAILED and is deployed as it is gets the next `attempt`, so that the controller tries at once.

    Args:
        settings: How; None: as it is deployed now, or as its artifact asks for, or the defaults.
        overrides: Fields of DeploySettings to change in that.
    """

    def change(document: ModelDocument) -> ModelDocument:
        version = _named_or_newest(document, target)
        record = document.record(version)
        now = record.deploy
        try:
            wanted = replace(settings or now or DeploySettings(**record.serving), **(overrides or {}))
        except TypeError as error:
            raise InvalidRequest(f"deploy: {error}") from None
        return changes.deployed(document, version, wanted, store.statuses(document.name) if now else {})

    return _apply(store, target.model, "deploy", change, by, reason, expect_revision)


def undeploy(
    store: VersionStore,
    target: Target,
    *,
    force: bool = False,
    by: str,
    reason: str = "",
    expect_revision: int | None = None,
) -> ModelDocument:
    """Have a version served no longer. With `force`, what traffic and labels it has go elsewhere or away."""
    return _apply(
        store,
        target.model,
        "undeploy",
        lambda document: changes.undeployed(document, _named(document, target), force),
        by,
        reason,
        expect_revision,
        traffic=force,
    )


def scale(
    store: VersionStore,
    target: Target,
    *,
    min_replicas: int | None = None,
    max_replicas: int | None = None,
    weight: float | None = None,
    priority: int | None = None,
    by: str,
    reason: str = "",
    expect_revision: int | None = None,
) -> ModelDocument:
    """Change the bounds of a version's replicas and its part of what is scarce; those that run are left running."""
    return _apply(
        store,
        target.model,
        "scale",
        lambda document: changes.scaled(
            document, _named(document, target), min_replicas, max_replicas, weight, priority
        ),
        by,
        reason,
        expect_revision,
    )


def split(
    store: VersionStore,
    model: str,
    split: TrafficSplit,
    *,
    by: str,
    reason: str = "",
    expect_revision: int | None = None,
) -> ModelDocument:
    """Divide the model's traffic as `split` says."""
    return _apply(
        store,
        model,
        "split",
        lambda document: changes.split_to(document, split, store.statuses(model)),
        by,
        reason,
        expect_revision,
        traffic=True,
    )


def take_first_traffic(store: VersionStore, target: Target, *, by: str, reason: str = "") -> ModelDocument:
    """Give a READY version everything, and the label `stable`, if no version of the model takes traffic yet."""

    def change(document: ModelDocument) -> ModelDocument:
        if document.split is not None:
            return document
        return changes.promoted(document, _named_or_newest(document, target), store.statuses(target.model))

    return _apply(store, target.model, PROMOTE, change, by, reason or "the first version that is READY", None)


def promote(
    store: VersionStore, target: Target, *, by: str, reason: str = "", expect_revision: int | None = None
) -> ModelDocument:
    """Give a version all traffic and the label `stable`."""
    return _apply(
        store,
        target.model,
        PROMOTE,
        lambda document: changes.promoted(document, _named(document, target), store.statuses(target.model)),
        by,
        reason,
        expect_revision,
        traffic=True,
    )


def rollback(
    store: VersionStore,
    model: str,
    *,
    to_revision: int | None = None,
    by: str,
    reason: str = "",
    expect_revision: int | None = None,
) -> ModelDocument:
    """Put split and `stable` back: before the latest step not yet undone, or as at `to_revision`.

    `cluster.changes` says what a step is. The history only grows: this is a new commit of an old state.
    """

    def change(document: ModelDocument) -> ModelDocument:
        history = tuple(
            entry for entry in store.history(model, MAX_HISTORY) if entry.revision <= document.revision
        )  # what came after `document` was read is caught by the swap
        return changes.rolled_back(document, history, store.statuses(model), to_revision)

    return _apply(store, model, ROLLBACK, change, by, reason, expect_revision, traffic=True)


def set_label(
    store: VersionStore,
    target: Target,
    label: str,
    *,
    by: str,
    reason: str = "",
    expect_revision: int | None = None,
) -> ModelDocument:
    """Put `label` on a READY version, taking it from whichever has it."""
    return _apply(
        store,
        target.model,
        "label",
        lambda document: changes.labelled(document, label, _named(document, target), store.statuses(target.model)),
        by,
        reason,
        expect_revision,
        traffic=True,
    )


def remove_label(
    store: VersionStore, model: str, label: str, *, by: str, reason: str = "", expect_revision: int | None = None
) -> ModelDocument:
    """Take `label` away; requests addressed by it find nothing from then on."""
    return _apply(
        store,
        model,
        "unlabel",
        lambda document: changes.unlabelled(document, label),
        by,
        reason,
        expect_revision,
        traffic=True,
    )


def remove_model(
    store: VersionStore,
    model: str,
    *,
    force: bool = False,
    by: str,
    reason: str = "",
    expect_revision: int | None = None,
    derived: DerivedFiles | None = None,
) -> None:
    """Remove a model with all its versions; its history and its artifacts stay, `derived` as with `unpublish`.

    Raises: Conflict while a version is deployed, unless forced.
    """
    document = store.read(model)
    _check_revision(store, document, expect_revision)
    running = [version for version, record in document.versions.items() if record.deploy is not None]
    if running and not force:
        names = ", ".join(f"{model}:{version}" for version in sorted(running, key=int))
        raise Conflict(f"{model} is deployed ({names}); undeploy first, or remove it with --force")
    store.remove(document, by, reason)
    _remove_derived(store, derived, [record.digest for record in document.versions.values()])


def version_of(document: ModelDocument, target: Target) -> str:
    """The version a command with `target` means: its own, its label's, or the newest. Raises: ModelNotFound."""
    return _named_or_newest(document, target)


def _remove_derived(store: VersionStore, derived: DerivedFiles | None, digests: Iterable[str]) -> None:
    """Remove what was made of these artifacts, but not of those that a version still has."""
    if derived is None:
        return
    used: set[str] = set()
    for model in store.models():
        with suppress(ModelNotFound):  # removed a moment ago
            used |= {record.digest for record in store.read(model).versions.values()}
    for digest in set(digests) - used:
        derived.remove(digest)


def _named_or_newest(document: ModelDocument, target: Target) -> str:
    if target.version is None and target.label is None:
        return changes.newest(document)
    return document.resolve(target)


def _named(document: ModelDocument, target: Target) -> str:
    if target.version is None and target.label is None:
        have = ", ".join(f"{target.model}:{version}" for version in sorted(document.versions, key=int)) or "none"
        raise InvalidRequest(f"{target.model}: say which version (there are: {have})")
    return document.resolve(target)


def _read_or_new(store: VersionStore, model: str) -> ModelDocument:
    try:
        return store.read(model)
    except ModelNotFound:
        return ModelDocument(model)


def _apply(
    store: VersionStore,
    model: str,
    operation: str,
    change: Change,
    by: str,
    reason: str,
    expect_revision: int | None,
    *,
    traffic: bool = False,
    make: bool = False,
) -> ModelDocument:
    """Read, compute, swap; again if the race was lost and nobody has to look first.

    Args:
        traffic: The change moves traffic or labels, so another's move in between must be looked at.
        make: Begin with an empty document if there is no such model.
    """
    first: ModelDocument | None = None
    for attempt in range(ATTEMPTS):
        document = _read_or_new(store, model) if make else store.read(model)
        _check_revision(store, document, expect_revision)
        first = first or document
        new = change(document)
        if new == document:
            return document
        try:
            return store.swap(new, operation, by, reason)
        except StaleRevision:
            if expect_revision is not None or attempt == ATTEMPTS - 1:
                raise
            if traffic:
                now = store.read(model)
                if (now.split, now.labels) != (first.split, first.labels):
                    raise
    raise AssertionError("the last attempt returns or raises")


def _check_revision(store: VersionStore, document: ModelDocument, expected: int | None) -> None:
    if expected is None or document.revision == expected:
        return
    history = store.history(document.name, 1) if document.revision else ()
    raise lost_race(document.name, expected, history[0] if history else None)
