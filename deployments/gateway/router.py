"""The request router that Serve builds in every process that holds a handle of a model version.

Serve pickles this class together with the module's globals, by value. It therefore refers to the process's `Membership`
through its module, which travels by name: a copy of the object would be nobody's.
"""

from __future__ import annotations

from typing import Any

from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter

from deployments.gateway import membership


class WireRouter(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]
    """Serve's default router, for the rare calls that go through a handle, plus the broadcast of addresses."""

    def update_replicas(self, replicas: list[Any]) -> None:
        super().update_replicas(replicas)
        membership.MEMBERSHIP.publish(
            self._deployment_id.app_name,
            {
                replica.replica_id.unique_id: {**replica.replica_metadata, "node": replica.node_id}
                for replica in replicas
                if replica.replica_metadata
            },
        )
