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

import ray
from ray import serve
from ray.serve.schema import ServeStatus

from cluster.documents import ModelDocument, VersionRecord, VersionStatus, spec_of
from cluster.errors import ServingError, StoreUnavailable
from cluster.policy.reconcile import Applied, Seen, Wanted, after_refusal, at_rest, plan, refused
from cluster.settings import Boot
from cluster.store import VersionStore
from cluster.store.follow import Follower
from cluster.store.redis import RedisStore
from deployments import applications as apps

log = logging.getLogger("ray.serve")

STEP_S = 1.0
SETTLED_STEP_S = 3.0  # asking Serve for its status costs CPU on both sides; a commit wakes the loop at once
HUNG_S = 120.0  # Serve's own calls may block for a while; longer than this, the controller asks to be replaced


class Controller:
    """Deployed by `deployments.applications.controller_application`."""

    async def __init__(self, boot_file: str) -> None:  # type: ignore[misc]  # Serve awaits it
        boot = Boot.read(boot_file)
        store = RedisStore(boot.store_url)
        self._reconciler = Reconciler(boot_file, boot, store)
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

    def __init__(self, boot_file: str, boot: Boot, store: VersionStore) -> None:
        self._boot_file = boot_file
        self._settings = boot.settings
        self._store = store
        self._follower = Follower(store, Path(boot.home) / "controller.json")
        self._memory: dict[str, Applied] = {}
        self._reported: dict[str, dict[str, VersionStatus]] = {}
        self._node = ray.get_runtime_context().get_node_id()
        self.settled = False  # the last step found everything as it should be

    def step(self) -> None:
        """Bring Serve one step closer to the desired state and report. Raises: StoreUnavailable."""
        self.settled = False
        if self._follower.poll().adopted:
            self._reported.clear()  # what was reported to a store that had lost its data was dropped there
        if not self._follower.up:
            raise StoreUnavailable("no answer")
        documents = self._follower.documents
        wanted, records = wanted_applications(documents)
        seen, gateways = applications_seen(serve.status())
        gateway = apps.GATEWAY_APP + self._node
        if gateway not in gateways:
            self._run(gateway, apps.gateway_application(self._boot_file, self._node, self._settings.gateway))
        before = self._before(documents, wanted)
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
                        self._boot_file,
                        want.model,
                        records[name],
                        self._settings.gateway.max_deadline_s,
                        fresh=name not in seen,
                    ),
                )
            except Exception as error:  # one version's trouble must not keep the others from being served
                log.exception("%s could not be deployed", name)
                reason = error.message if isinstance(error, ServingError) else f"{type(error).__name__}: {error}"
                decided.statuses[name] = refused(decided.statuses[name], reason[:500])
                self._memory[name] = after_refusal(self._memory[name], reason[:500], time.monotonic())
        self._report(documents, wanted, seen, decided.statuses)
        self.settled = not (decided.run or decided.delete) and all(
            status.state in ("READY", "ASLEEP") for status in decided.statuses.values()
        )

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


def applications_seen(status: ServeStatus) -> tuple[dict[str, Seen], set[str]]:
    """Model applications as Serve reports them, and the names of the gateway applications."""
    seen: dict[str, Seen] = {}
    gateways: set[str] = set()
    for name, app in status.applications.items():
        if name.startswith(apps.GATEWAY_APP):
            gateways.add(name)
        if apps.parse_app_name(name) is None:
            continue
        deployment = app.deployments.get(apps.MODEL_DEPLOYMENT)
        states = {str(getattr(k, "value", k)): n for k, n in deployment.replica_states.items()} if deployment else {}
        message = "\n".join(part for part in (app.message, deployment.message if deployment else "") if part)
        seen[name] = Seen(
            status=str(getattr(app.status, "value", app.status)),
            running=states.get("RUNNING", 0),
            target=sum(n for state, n in states.items() if state != "STOPPING"),
            message=message,
        )
    return seen, gateways


def _without_time(statuses: Mapping[str, VersionStatus]) -> dict[str, VersionStatus]:
    return {version: replace(status, at_s=0.0) for version, status in statuses.items()}
