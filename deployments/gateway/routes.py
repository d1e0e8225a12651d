"""The routing table of one gateway: which versions there are, which of them answers a request, and how to reach it.

`apply` is given the desired state whenever it changed; everything else is dictionary look-ups. Redis, Ray and the
network are never touched while a request is routed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from cluster.documents import ModelDocument, VersionRecord, VersionStatus
from cluster.errors import ModelNotFound, ModelNotReady
from cluster.names import Target
from deployments.wire.client import VersionClient, micro_batch_rows

log = logging.getLogger("ray.serve")

Connect = Callable[[str, VersionRecord], VersionClient]
"""(model, record) -> a client that will be told of the version's replicas."""

Disconnect = Callable[[str, VersionClient], None]
"""(model, client) -> nothing; lets the client's requests be answered first."""


class RoutingTable:
    """Implements `deployments.gateway.dispatch.Dispatcher`. Used on the event loop only."""

    def __init__(self, connect: Connect, disconnect: Disconnect) -> None:
        self._connect = connect
        self._disconnect = disconnect
        self._documents: Mapping[str, ModelDocument] = {}
        self._arms: dict[tuple[str, str], VersionClient] = {}
        self._statuses: dict[str, dict[str, VersionStatus]] = {}
        self.behind = False

    def apply(self, documents: Mapping[str, ModelDocument]) -> None:
        """Route by `documents` from now on; requests that are under way keep the version they were given.

        A version that cannot be connected is left out and tells nobody but the log; `behind` says to try again.
        """
        wanted = {
            (model, version): record
            for model, document in documents.items()
            for version, record in document.versions.items()
            if record.deploy is not None
        }
        self.behind = False
        for key, record in wanted.items():
            arm = self._arms.get(key)
            try:
                if arm is None:
                    self._arms[key] = self._connect(key[0], record)
                elif micro_batch_rows(arm.record) != micro_batch_rows(record):
                    self._arms[key] = self._connect(key[0], record)
                    self._disconnect(key[0], arm)
                elif arm.record != record:
                    arm.record = record
            except Exception:
                self.behind = True
                log.exception("%s:%s cannot be connected", *key)
        self._documents = documents
        for key in [key for key in self._arms if key not in wanted]:
            self._disconnect(key[0], self._arms.pop(key))

    def know(self, statuses: Mapping[str, dict[str, VersionStatus]]) -> None:
        """Keep what the controller reported last, for those who ask; nothing is routed by it.

        What waits for a version that FAILED is told why.
        """
        self._statuses = dict(statuses)
        for (model, version), arm in self._arms.items():
            status = self.statuses(model).get(version)
            failed = status is not None and status.state == "FAILED" and status.digest == arm.record.digest
            if status is not None and failed and not arm.connected:
                arm.give_up(
                    ModelNotReady(f"{model}:{version} cannot be started: {status.reason or 'see prism status'}")
                )

    def route(self, target: Target, key: str | None) -> VersionClient:
        """The arm that answers. Raises: ModelNotFound, ModelNotReady."""
        document = self._documents.get(target.model)
        if document is None:
            raise ModelNotFound(f"there is no model {target.model!r}")
        version = document.resolve(target, key)
        arm = self._arms.get((target.model, version))
        if arm is None:
            raise ModelNotReady(f"{target.model}:{version} is not deployed")
        return arm

    def arm(self, model: str, version: str) -> VersionClient:
        """Raises: ModelNotFound, ModelNotReady."""
        return self.route(Target(model, version=version), None)

    def models(self) -> list[str]:
        return sorted(self._documents)

    def document(self, model: str) -> ModelDocument:
        """Raises: ModelNotFound."""
        document = self._documents.get(model)
        if document is None:
            raise ModelNotFound(f"there is no model {model!r}")
        return document

    def statuses(self, model: str) -> dict[str, VersionStatus]:
        return self._statuses.get(model, {})

    def arms(self) -> Mapping[tuple[str, str], VersionClient]:
        """Every arm by (model, version)."""
        return self._arms

    def close(self) -> None:
        """Disconnect every arm."""
        arms, self._arms = self._arms, {}
        for (model, _), arm in arms.items():
            self._disconnect(model, arm)
