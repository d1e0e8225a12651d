"""The controller: makes Ray Serve's applications match the desired state in the version store.

A Serve deployment with one replica. Each step reads the store and Serve, asks `cluster.policy.reconcile.plan`, carries
out the answer and reports what it saw. It keeps nothing that cannot be read again: a new controller deploys every
version once more with the same version string, which changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ray import serve
from ray.serve.schema import ServeStatus

from cluster.documents import ModelDocument, VersionRecord, VersionStatus, spec_of
from cluster.errors import ServingError, StoreUnavailable
from cluster.nodes import NodeReports
from cluster.policy.nodes import (
    NodeMemory,
    NodeSeen,
    Refusal,
    after_drain_refused,
    node_reports,
    plan_drains,
    plan_gateways,
)
from cluster.policy.reconcile import Applied, Seen, Wanted, after_refusal, at_rest, plan, refused
from cluster.settings import Boot
from cluster.store import VersionStore
from cluster.store.follow import Follower
from cluster.store.redis import RedisStore
from deployments import applications as apps
from deployments.nodes import Nodes, serve_seen
from deployments.notes import read_notes
from deployments.placing import Placing
from deployments.sharing import capacity_of, claims_of, granted, grows, with_grants, with_scaling

log = logging.getLogger("ray.serve")

STEP_S = 1.0
SETTLED_STEP_S = 3.0  # asking Serve for its status costs CPU on both sides; a commit wakes the loop at once
NODES_REPORT_S = 10.0  # how old the report of the nodes may get while nothing changes
HUNG_S = 120.0  # Serve's own calls may block for a while; longer than this, the controller asks to be replaced

_MOVING = "PENDING_MIGRATION"  # it answers, on a node that drains, until a replica elsewhere does


class Controller:
    """Deployed by `deployments.applications.controller_application`."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
        boot = Boot.of_this_node()
        store = RedisStore(boot.store_url)
        self._reconciler = Reconciler(boot, store, Nodes())
        self._store = store
        self._stepped_s = time.monotonic()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._reconciler.step)
            except StoreUnavailable as error:
                log.warning("the version store cannot be reached, nothing is changed: %s", error.message)
            except Exception:
                log.exception("a reconcile step failed; the next one tries again")
            self._stepped_s = time.monotonic()
            try:
                await asyncio.to_thread(self._store.wait, SETTLED_STEP_S if self._reconciler.settled else STEP_S)
            except StoreUnavailable:
                await asyncio.sleep(STEP_S)

    async def check_health(self) -> None:
        """Raises if the loop has stopped or hangs."""
        if self._task.done():
            raise RuntimeError("the reconcile loop has ended")
        if time.monotonic() - self._stepped_s > HUNG_S:
            raise RuntimeError("a reconcile step hangs")

    async def __del__(self) -> None:
        self._task.cancel()


class Reconciler:
    """One step at a time, in one thread."""

    def __init__(self, boot: Boot, store: VersionStore, nodes: Nodes) -> None:
        self._settings = boot.settings
        self._store = store
        self._nodes = nodes
        self._follower = Follower(store, Path(boot.home) / "controller.json")
        self._memory: dict[str, Applied] = {}
        self._reported: dict[str, dict[str, VersionStatus]] = {}
        self._node_memory: dict[str, NodeMemory] = {}
        self._refusals: dict[str, Refusal] = {}  # of drains, by node id
        self._nodes_reported = NodeReports()
        self._live: dict[str, NodeSeen] = {}  # nodes when they were last listed
        self._placing = Placing()
        self.settled = False  # the last step found everything as it should be

    def step(self) -> None:
        """Bring Serve one step closer to the desired state and report. Raises: StoreUnavailable."""
        self.settled = False
        if self._follower.poll().adopted:
            self._reported.clear()  # what was reported to a store that had lost its data was dropped there
            self._nodes_reported = NodeReports()
        if not self._follower.up:
            raise StoreUnavailable("no answer")
        documents = self._follower.documents
        wanted, records = wanted_applications(documents)
        status, replicas, unplaced = serve_seen()
        seen, gateways = applications_seen(status)
        nodes_settled = self._look_after_nodes(replicas, gateways)
        if not self._live:
            return  # which versions take a GPU is decided once, so not before the nodes were seen; soon tried again
        self._placing.look(self._live.values(), unplaced, time.monotonic())
        before = self._before(documents, wanted)
        demands = {name: self._placing.demand(record, before.get(name)) for name, record in records.items()}
        notes = read_notes(wanted)
        # What no node can take must not keep others from what it will never use; a node that can may still be added.
        claimed = demands if grows(self._settings) else self._placing.possible(demands)
        claims = claims_of(documents, records, claimed, notes, seen, time.time())
        grants = granted(wanted, claims, capacity_of(self._live.values(), self._settings))
        wanted = with_grants(wanted, grants)
        decided = plan(wanted, seen, self._memory, before, time.monotonic())
        self._memory = decided.memory
        for name in decided.delete:
            log.info("delete %s", name)
            serve.delete(name, _blocking=False)
        for name in decided.run:
            want = wanted[name]
            log.info("deploy %s", name)
            try:
                self._run(
                    name,
                    apps.model_application(
                        want.model,
                        records[name],
                        demands[name],
                        self._settings.gateway.max_deadline_s,
                        fresh=name not in seen,
                        granted=grants.get(name, 0),
                    ),
                )
            except Exception as error:  # one version's trouble must not keep the others from being served
                log.exception("%s could not be deployed", name)
                reason = error.message if isinstance(error, ServingError) else f"{type(error).__name__}: {error}"
                decided.statuses[name] = refused(decided.statuses[name], reason[:500])
                self._memory[name] = after_refusal(self._memory[name], reason[:500], time.monotonic())
        for name, status in decided.statuses.items():
            explained = self._placing.explain(name, status, demands[name], time.monotonic())
            decided.statuses[name] = with_scaling(explained, notes.get(name), grants.get(name))
        self._report(documents, wanted, seen, decided.statuses)
        self.settled = (
            nodes_settled
            and not (decided.run or decided.delete)
            and all(status.state in ("READY", "ASLEEP") for status in decided.statuses.values())
        )

    def _look_after_nodes(self, replicas: dict[str, dict[str, int]], gateways: Mapping[str, str]) -> bool:
        """Gateways where they belong, drains begun, nodes reported. Returns whether nothing is left to do.

        Raises: StoreUnavailable.
        """
        try:
            nodes = self._nodes.seen(replicas)
        except Exception:  # Ray's head may be busy for a moment; versions are looked after all the same
            log.exception("the nodes could not be listed")
            return False
        self._live = nodes
        decided = plan_gateways(nodes, gateways, self._node_memory, time.monotonic())
        self._node_memory = decided.memory
        for node in decided.delete:
            log.info("delete the gateway of node %s", node)
            serve.delete(apps.GATEWAY_APP + node, _blocking=False)
        for node in decided.run:
            log.info("run a gateway on node %s", node)
            try:
                self._run(apps.GATEWAY_APP + node, apps.gateway_application(node, self._settings.gateway))
            except Exception:  # versions are looked after all the same, and the next step tries again
                log.exception("the gateway of node %s could not be run", node)
        draining = plan_drains(nodes, self._store.nodes.drains(), self._refusals, time.monotonic(), time.time())
        self._refusals = draining.refusals
        for node in draining.drain:
            self._drain(node)
        for node in draining.forget:
            self._store.nodes.forget(node)
        reports = NodeReports(node_reports(nodes, gateways, self._refusals), time.time())
        last = self._nodes_reported
        if reports.nodes != last.nodes or reports.at_s - last.at_s > NODES_REPORT_S:
            self._store.nodes.report(reports)
            self._nodes_reported = reports
        return not (decided.run or decided.delete or draining.drain or any(node.draining for node in nodes.values()))

    def _drain(self, node: str) -> None:
        """Have Ray drain a node, and remember why it would not."""
        why = self._nodes.drain(node)
        before = self._refusals.pop(node, None)
        if why:
            self._refusals[node] = after_drain_refused(before, why, time.monotonic())
        if not why or before is None or before.why != why:
            log.info("drain node %s%s", node, f": refused: {why}" if why else "")

    @staticmethod
    def _run(name: str, application: serve.Application) -> None:
        serve.run_many(
            [serve.RunTarget(application, name=name, route_prefix=None)], wait_for_applications_running=False
        )

    def _before(self, documents: Mapping[str, ModelDocument], wanted: Mapping[str, Wanted]) -> dict[str, VersionStatus]:
        """What was reported last, by application; read from the store the first time."""
        for model in documents:
            if model not in self._reported:
                self._reported[model] = self._store.statuses(model)
        return {
            name: status
            for name, want in wanted.items()
            if (status := self._reported.get(want.model, {}).get(want.version)) is not None
        }

    def _report(
        self,
        documents: Mapping[str, ModelDocument],
        wanted: Mapping[str, Wanted],
        seen: Mapping[str, Seen],
        statuses: Mapping[str, VersionStatus],
    ) -> None:
        """Write the statuses of every model for which something changed."""
        for model, document in documents.items():
            now: dict[str, VersionStatus] = {}
            for version, record in document.versions.items():
                name = apps.app_name(model, version)
                if name in wanted:
                    now[version] = statuses[name]
                else:
                    old = self._reported.get(model, {}).get(version)
                    now[version] = at_rest(version, record.digest, old, stopping=name in seen)
            old_statuses = self._reported.get(model, {})
            if _without_time(now) != _without_time(old_statuses):
                stamped = {version: replace(status, at_s=time.time()) for version, status in now.items()}
                self._store.report(model, stamped)
                self._reported[model] = stamped
        for model in [name for name in self._reported if name not in documents]:
            del self._reported[model]


def wanted_applications(
    documents: Mapping[str, ModelDocument],
) -> tuple[dict[str, Wanted], dict[str, VersionRecord]]:
    """Every deployed version by application name, and its record."""
    wanted: dict[str, Wanted] = {}
    records: dict[str, VersionRecord] = {}
    for model, document in documents.items():
        for version, record in document.versions.items():
            if record.deploy is None:
                continue
            name = apps.app_name(model, version)
            wanted[name] = Wanted(model, version, record.digest, spec_of(record))
            records[name] = record
    return wanted, records


def applications_seen(status: ServeStatus) -> tuple[dict[str, Seen], dict[str, str]]:
    """Model applications as Serve reports them, and Serve's status of each node's gateway by node id."""
    seen: dict[str, Seen] = {}
    gateways: dict[str, str] = {}
    for name, app in status.applications.items():
        if name.startswith(apps.GATEWAY_APP):
            gateways[name.removeprefix(apps.GATEWAY_APP)] = str(getattr(app.status, "value", app.status))
        if apps.parse_app_name(name) is None:
            continue
        deployment = app.deployments.get(apps.MODEL_DEPLOYMENT)
        states = {str(getattr(k, "value", k)): n for k, n in deployment.replica_states.items()} if deployment else {}
        message = "\n".join(part for part in (app.message, deployment.message if deployment else "") if part)
        seen[name] = Seen(
            status=str(getattr(app.status, "value", app.status)),
            running=states.get("RUNNING", 0) + states.get(_MOVING, 0),
            target=sum(n for state, n in states.items() if state not in ("STOPPING", _MOVING)),
            message=message,
        )
    return seen, gateways


def _without_time(statuses: Mapping[str, VersionStatus]) -> dict[str, VersionStatus]:
    return {version: replace(status, at_s=0.0) for version, status in statuses.items()}
