"""A local Prism's processes killed and its models changed, for the events of a load test.

Only processes that carry this home's mark are ever touched (`cluster.procs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from signal import SIGKILL

import psutil

from cluster import operations, procs
from cluster.documents import ModelDocument
from cluster.errors import Conflict, ModelNotReady, OperatorError
from cluster.home import Home
from cluster.names import Target
from cluster.splits import TrafficSplit
from cluster.store import VersionStore
from loadtest.events import Event, newest_ready, split_of

STORES = ("valkey-server", "redis-server")


@dataclass(frozen=True, slots=True)
class Member:
    """A process of a home and its command line."""

    pid: int
    started_s: float
    command: str


class HomeActions:
    """Carries out events on the Prism that runs in `home`. `by` is who the audit says it was."""

    def __init__(self, home: Home, store: VersionStore, by: str, first_model: str) -> None:
        self._home, self._store, self._by = home, store, by
        self._first_model = first_model
        self._splits: dict[Event, TrafficSplit] = {}

    def check(self, events: Sequence[Event]) -> None:
        """Raises: a ServingError, in one line, if an event could not be carried out as things are now."""
        members = self._members() if any(event.action.startswith("kill") for event in events) else ()
        for event in events:
            if event.action.startswith("kill"):
                self._victim(event, members)
            elif event.action == "split":
                # Words mean the versions they mean now, also after an earlier event has moved traffic.
                self._splits[event] = split_of(event.shares, *self._document(event))
            else:
                self._version(event)

    def do(self, event: Event) -> str:
        """What was done, in words. Raises: a ServingError if it could not be done."""
        actions: Mapping[str, Callable[[Event], str]] = {
            "scale": self._scale,
            "split": self._split,
            "promote": self._promote,
        }
        return actions.get(event.action, self._kill)(event)

    def _kill(self, event: Event) -> str:
        victim = self._victim(event, self._members())
        process = procs.Identity(victim.pid, victim.started_s).process()
        if process is None:
            raise OperatorError(f"process {victim.pid} has just ended by itself")
        try:
            process.send_signal(SIGKILL)
        except psutil.Error as error:
            raise OperatorError(f"process {victim.pid} cannot be killed: {type(error).__name__}") from None
        return f"killed {_what(victim)}, process {victim.pid}"

    def _scale(self, event: Event) -> str:
        target = self._version(event)
        document = operations.scale(
            self._store,
            target,
            min_replicas=event.min_replicas,
            max_replicas=event.max_replicas,
            by=self._by,
            reason="load test",
        )
        deploy = document.record(target.version or "").deploy
        return f"{target} has {deploy.min_replicas} to {deploy.max_replicas} replicas" if deploy else str(target)

    def _split(self, event: Event) -> str:
        split = self._splits.get(event) or split_of(event.shares, *self._document(event))
        document = operations.split(self._store, self._model(event).model, split, by=self._by, reason="load test")
        return f"{document.name}: {document.split}"

    def _promote(self, event: Event) -> str:
        target = self._version(event)
        operations.promote(self._store, target, by=self._by, reason="load test")
        return f"{target} has all traffic"

    def _victim(self, event: Event, members: Sequence[Member]) -> Member:
        if event.action == "kill-store":
            return _first(store_of(members), "kill-store: this Prism's store is not its own, so it is not killed")
        if event.action == "kill-gateway":
            return _first(gateways_of(members), "kill-gateway: no gateway runs here")
        target = self._model(event)
        self._store.read(target.model)
        found = replicas_of(members, target.model, target.version)
        return _first(found, f"kill-replica: no replica of {target} runs on this machine")

    def _members(self) -> tuple[Member, ...]:
        state = self._home.supervisor()
        found = []
        for process in procs.find_marked(self._home.key, state.leaders if state else ()):
            try:
                found.append(Member(process.pid, process.create_time(), " ".join(process.cmdline())))
            except psutil.Error:
                continue
        return tuple(found)

    def _model(self, event: Event) -> Target:
        target = Target.parse(event.model or self._first_model)
        if target.label is None:
            return target
        return Target(target.model, version=self._store.read(target.model).resolve(target))

    def _version(self, event: Event) -> Target:
        target = self._model(event)
        document, ready = self._document(event)
        version = target.version or newest_ready(document, ready)
        if document.record(version).deploy is None:
            raise Conflict(f"events: {event.action}: {target.model}:{version} is not deployed")
        if event.action == "promote" and version not in ready:
            raise ModelNotReady(f"events: promote: {target.model}:{version} is not READY")
        return Target(target.model, version=version)

    def _document(self, event: Event) -> tuple[ModelDocument, frozenset[str]]:
        model = self._model(event).model
        document, statuses = self._store.read(model), self._store.statuses(model)
        ready = frozenset(
            version
            for version, record in document.versions.items()
            if record.deploy is not None and version in statuses and statuses[version].state in ("READY", "ASLEEP")
        )
        return document, ready


def store_of(members: Sequence[Member]) -> list[Member]:
    """The embedded store's process; none where the store is somebody else's."""
    return [member for member in members if any(name in member.command for name in STORES)]


def gateways_of(members: Sequence[Member]) -> list[Member]:
    return [m for m in members if "ServeReplica:prism-gateway" in m.command]


def replicas_of(members: Sequence[Member], model: str, version: str | None) -> list[Member]:
    """A model's replicas, those of the version with most of them first, the oldest of these at the front."""
    by_version: dict[str, list[Member]] = {}
    for member in members:
        _, found, rest = member.command.partition(f"ServeReplica:model:{model}:")
        number = rest.partition(":")[0]
        if found and version in (None, number):
            by_version.setdefault(number, []).append(member)
    groups = sorted(by_version.items(), key=lambda item: (-len(item[1]), item[0]))
    return [member for _, group in groups for member in sorted(group, key=lambda m: (m.started_s, m.pid))]


def _first(found: Sequence[Member], problem: str) -> Member:
    if not found:
        raise OperatorError(f"events: {problem}")
    return found[0]


def _what(victim: Member) -> str:
    if any(name in victim.command for name in STORES):
        return "the store"
    _, found, rest = victim.command.partition("ServeReplica:model:")
    return f"a replica of {':'.join(rest.split(':')[:2])}" if found else "a gateway"
