"""The version store: where desired state lives, with compare-and-swap and an audit stream.

`memory.MemoryStore` and `redis.RedisStore` implement `VersionStore`; one contract suite runs over both.
Every method may be called from any thread and blocks for at most a bounded time.
"""

from __future__ import annotations

from typing import Protocol

from cluster.documents import AuditEntry, ModelDocument, VersionStatus
from cluster.nodes import NodeStore


class VersionStore(Protocol):
    """Raises StoreUnavailable from any method when the store cannot be reached, InvalidRequest for a name that no
    model may have, a text or document that is too large, or a document that another schema version wrote.

    Revisions of a model only ever grow: a removal takes one, and a model made anew goes on counting.
    """

    @property
    def nodes(self) -> NodeStore:
        """What is kept of the cluster's nodes."""

    def epoch(self) -> str:
        """The identity of this data set: made once, kept for as long as the data is."""

    def models(self) -> tuple[str, ...]:
        """Names of all models, sorted."""

    def revisions(self) -> dict[str, int]:
        """Current revision by model: what a reader polls to see what changed."""

    def read(self, model: str) -> ModelDocument:
        """The current document, carrying its revision and epoch. Raises: ModelNotFound."""

    def swap(self, new: ModelDocument, operation: str, by: str, reason: str = "", *, above: int = 0) -> ModelDocument:
        """Store `new` if `new.revision` is still the current one (0: the model must not exist yet).

        Its revision will be the next one that is greater than `above` too: the number that readers may know of.
        Returns the document with its new revision. Appends to the audit stream and wakes `wait` in the same step.
        Raises: StaleRevision (message shows what the other writer did), and then nothing was written.
        """

    def remove(self, document: ModelDocument, by: str, reason: str = "") -> None:
        """Delete the model if `document.revision` is still current; its audit stream stays. Raises: StaleRevision."""

    def history(self, model: str, limit: int = 100) -> tuple[AuditEntry, ...]:
        """The latest `limit` (1 to 1000) changes, newest first.

        A removal is an entry too, with operation `remove` and the document that was removed.
        Raises: ModelNotFound if there never was such a model.
        """

    def statuses(self, model: str) -> dict[str, VersionStatus]:
        """What the controller last reported, by version; {} if nothing yet."""

    def report(self, model: str, statuses: dict[str, VersionStatus]) -> None:
        """Replace the model's reported statuses. A report of a model that was removed meanwhile is dropped."""

    def sanctioned(self) -> int:
        """The mark of the last `sanction`; 0 if there never was one."""

    def sanction(self) -> int:
        """Have every reader take the store as it is now for true, whatever data set or revisions it knew before.

        Returns the new mark, greater than every earlier one, also of another data set. Wakes `wait`.
        """

    def wait(self, timeout_s: float) -> bool:
        """Block until something was committed (True) or `timeout_s` passed (False). A hint: it may miss a change."""

    def durability_warnings(self) -> tuple[str, ...]:
        """What could lose a commit after it was answered, in words for the operator; () if nothing is known."""

    def close(self) -> None:
        """Release connections. Idempotent."""
