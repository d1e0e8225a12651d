"""What each version may have of a cluster that is too small: the controller's side of `cluster.policy.share`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cluster.documents import ModelDocument, VersionRecord, VersionStatus
from cluster.policy.nodes import NodeSeen
from cluster.policy.placement import Demand
from cluster.policy.reconcile import GRANT, Seen, Wanted
from cluster.policy.share import Claim, limits
from cluster.settings import Settings
from deployments.applications import app_name
from deployments.notes import NOTE_VALID_S, Note

UNLIMITED = 1e12


def claims_of(
    documents: Mapping[str, ModelDocument],
    records: Mapping[str, VersionRecord],
    demands: Mapping[str, Demand],
    notes: Mapping[str, Note],
    seen: Mapping[str, Seen],
    now_s: float,
) -> dict[str, Claim]:
    """What each deployed version of which `demands` tells asks for, by application.

    It wants what the policy said last (`notes`, written at Unix times); without a fresh word, what it has or the least
    it is to have.
    """
    claims: dict[str, Claim] = {}
    for model, document in documents.items():
        stable = _stable(document)
        for version in document.versions:
            name = app_name(model, version)
            record, demand = records.get(name), demands.get(name)
            if record is None or record.deploy is None or demand is None:
                continue
            deploy, note, app = record.deploy, notes.get(name), seen.get(name)
            fresh = note is not None and now_s - note.at_s <= NOTE_VALID_S
            has = app.target if app is not None else max(1, deploy.min_replicas)
            claims[name] = Claim(
                wants=note.wants if note is not None and fresh else has,
                needs=demand.resources(),
                least=deploy.min_replicas,
                most=deploy.max_replicas,
                weight=deploy.weight,
                priority=deploy.priority,
                after=app_name(model, stable) if stable and stable != version else "",
            )
    return claims


def grows(settings: Settings) -> bool:
    """Whether nodes are added where replicas wait."""
    return bool(settings.ray.autoscaling_config) or settings.ray.grows


def capacity_of(nodes: Iterable[NodeSeen], settings: Settings) -> dict[str, float]:
    """What all replicas together may use, by Ray's names of resources; {} if the nodes are not known."""
    found: dict[str, float] = {}
    for node in nodes:
        if not node.draining:
            for resource, amount in node.total.items():
                found[resource] = found.get(resource, 0.0) + amount
    if not found:
        return {}
    # What is missing is added, as far as the operator allows.
    if grows(settings):
        found = dict.fromkeys([*found, "CPU", "GPU", "memory"], UNLIMITED)
    for resource, limit in (("CPU", settings.limits.cpus), ("GPU", settings.limits.gpus)):
        if limit:  # what is not there cannot be shared, also where a node has just gone
            found[resource] = min(limit, found.get(resource, 0.0))
    return found


def granted(wanted: Mapping[str, Wanted], claims: Mapping[str, Claim], capacity: Mapping[str, float]) -> dict[str, int]:
    """The bound of each application that has to leave something to others; {} while there is enough."""
    if not capacity:
        return {}
    return {name: count for name, count in limits(claims, capacity).items() if name in wanted}


def with_grants(wanted: Mapping[str, Wanted], grants: Mapping[str, int]) -> dict[str, Wanted]:
    """The applications with their bounds as part of their specs, so that a change of bounds is carried out."""
    return {
        name: replace(want, spec=f"{want.spec}{GRANT}{grants[name]}") if name in grants else want
        for name, want in wanted.items()
    }


def with_scaling(status: VersionStatus, note: Note | None, grant: int | None) -> VersionStatus:
    """The status with the last change of replicas, what it wants, and what it is held to."""
    said = note.changed if note is not None else ""
    if grant is not None and note is not None and note.wants > grant:
        held = f"wants {note.wants} replicas and is granted {grant}: others need the rest"
        said = f"{held}; last change {said}" if said else held
    wants = note.wants if note is not None else 0
    return replace(status, scaling=said, wants=wants, granted=grant or 0)


def _stable(document: ModelDocument) -> str:
    """The version that others of the model must not starve: the one labelled stable, else the one with most traffic."""
    if "stable" in document.labels:
        return document.labels["stable"]
    arms = document.split.arms if document.split else ()
    return max(arms, key=lambda arm: arm.share_bp).version if arms else ""
