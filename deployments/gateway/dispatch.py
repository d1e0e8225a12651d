"""What the protocols of a gateway ask of its routing table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cluster.documents import ModelDocument, VersionStatus
from cluster.names import Target
from deployments.call import Arm


class LiveArm(Arm, Protocol):
    """An arm that also says how it is doing in this gateway."""

    @property
    def waiting_rows(self) -> int:
        """Rows that wait here for a replica."""

    @property
    def connected(self) -> int:
        """Replicas that take work."""

    @property
    def answered(self) -> int:
        """Of these the ones that have answered since they connected."""


class Dispatcher(Protocol):
    """Answers from memory, on the event loop. Documents and records are the same objects until they change."""

    def route(self, target: Target, key: str | None) -> LiveArm:
        """The arm that answers `target`; `key` makes the choice sticky. Raises: ModelNotFound, ModelNotReady."""

    def arm(self, model: str, version: str) -> LiveArm:
        """The arm of one version. Raises: ModelNotFound, ModelNotReady if the version is not deployed."""

    def arms(self) -> Mapping[tuple[str, str], LiveArm]:
        """Every arm by (model, version)."""

    def models(self) -> list[str]:
        """Names of all models, sorted."""

    def document(self, model: str) -> ModelDocument:
        """Raises: ModelNotFound."""

    def statuses(self, model: str) -> Mapping[str, VersionStatus]:
        """What the controller last reported, by version; {} if nothing yet."""
