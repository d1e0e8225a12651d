"""Which artifact answers a target of a load test, looked up in the store of a local Prism, and what it is good for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.artifact import SAMPLE
from cluster.artifacts_store import ArtifactStore
from cluster.documents import ModelDocument, VersionRecord
from cluster.errors import InvalidRequest, ModelNotFound
from cluster.names import Target
from cluster.store import VersionStore
from cluster.tensors import ANY, Signature
from loadtest.scenario import LoadTarget, Scenario


@dataclass(frozen=True, slots=True)
class Served:
    """A version, its artifact's folder on this machine, and how many replicas answer."""

    model: str
    record: VersionRecord
    folder: Path
    replicas: int


def served(name: str, store: VersionStore, artifacts: ArtifactStore) -> Served:
    """What `name` (model, model:version or model@label) means now; of a model that is split, the stable version.

    Raises: ModelNotFound, StoreUnavailable, ArtifactCorrupt.
    """
    target = Target.parse(name)
    document = store.read(target.model)
    record = document.record(_version(document, target))
    status = store.statuses(target.model).get(record.version)
    folder = artifacts.fetch(record.uri, record.digest)
    return Served(target.model, record, folder, status.replicas if status else 0)


def split_versions(name: str, store: VersionStore) -> tuple[str, ...]:
    """The versions that answer `name` at the same time; one, unless it is a model whose traffic is split."""
    target = Target.parse(name)
    document = store.read(target.model)
    if target.version or target.label or document.split is None:
        return (_version(document, target),)
    return document.split.versions


def with_samples(scenario: Scenario, store: VersionStore, artifacts: ArtifactStore) -> Scenario:
    """Targets whose inputs cannot be made up get the sample that lies in the model's artifact, if there is one."""

    def filled(target: LoadTarget) -> LoadTarget:
        if target.sample or not target.model:
            return target
        found = served(target.model, store, artifacts)
        file = found.folder / SAMPLE
        needed = needs_sample(found.record.signature, target.shapes)
        return replace(target, sample=str(file)) if needed and file.is_file() else target

    return replace(scenario, targets=tuple(filled(target) for target in scenario.targets))


def needs_sample(signature: Signature, shapes: Mapping[str, object]) -> bool:
    """Whether the signature leaves open what a request may hold: text, or free dimensions that `shapes` leaves."""
    return any(
        spec.dtype == "BYTES" or (ANY in spec.shape[1 if signature.batched else 0 :] and spec.name not in shapes)
        for spec in signature.inputs
    )


def check_same(folder_digest: str, found: Served, folder: Path) -> None:
    """Raises: InvalidRequest if an artifact given by hand is not the one that Prism serves."""
    if folder_digest != found.record.digest:
        raise InvalidRequest(
            f"artifact: {folder} is not what {found.model}:{found.record.version} serves "
            f"(digest {folder_digest[:12]}, not {found.record.digest[:12]})"
        )


def _version(document: ModelDocument, target: Target) -> str:
    if target.version or target.label:
        return document.resolve(target)
    if "stable" in document.labels:
        return document.labels["stable"]
    if document.split is None:
        raise ModelNotFound(f"{document.name}: no version takes traffic yet (prism split {document.name} VERSION=100)")
    return max(document.split.arms, key=lambda arm: arm.share_bp).version
