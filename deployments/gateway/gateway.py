"""The gateway: Ray Serve's view of one process that listens for clients itself.

Serve places it, checks its health and replaces it. Its listening socket is handed to it through the node's door, so
it outlives any gateway; its connections to replicas are its own; what it routes by it reads from the version store and
keeps.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.documents import VersionRecord, VersionStatus
from cluster.door import open_door
from cluster.errors import ServingError, StoreUnavailable
from cluster.settings import Boot
from cluster.store.follow import Follower
from cluster.store.redis import RedisStore
from deployments import applications as apps
from deployments.gateway.app import build_app
from deployments.gateway.listener import HttpServer
from deployments.gateway.membership import MEMBERSHIP, Addresses
from deployments.gateway.request_log import RequestLog
from deployments.gateway.routes import RoutingTable
from deployments.gateway.siblings import Siblings
from deployments.memory import freeze_start_up, keep_freed_memory
from deployments.metrics import Metrics
from deployments.wire.client import VersionClient

log = logging.getLogger("ray.serve")

STATUS_S = 2.0  # how old the statuses that the page and `ready` show may be
FOLLOW_S = 60.0  # a gateway that has not looked at the store for so long asks to be replaced
DESERTED_S = 5.0  # a version that is leaving and has had no replica for so long answers what waits with 503


class Gateway:
    """Deployed by `deployments.applications.gateway_application`."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
        """Raises: OperatorError when the node's door does not hand out the listening socket."""
        self._boot = boot = Boot.of_this_node()
        self._loop = asyncio.get_running_loop()
        self._node = ray.get_runtime_context().get_node_id()
        self._store = RedisStore(boot.store_url)
        unique = serve.get_replica_context().replica_id.unique_id
        state = Path(boot.home) / "routes.json"
        self._follower = Follower(self._store, state)
        self._metrics = Metrics(gateway=unique)
        self._handles: dict[tuple[str, str], DeploymentHandle] = {}
        self._waking: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._table = RoutingTable(self._connect, self._disconnect)
        self._statuses: dict[str, dict[str, VersionStatus]] = {}
        self._statuses_s = 0.0
        self._node_drains = False
        await asyncio.to_thread(self._read)
        self._table.apply(self._follower.documents)
        self._table.know(self._statuses)
        self._siblings = Siblings(self._metrics, Path(boot.run_dir), self._node)
        await self._siblings.listen()
        app = build_app(self._table, self._metrics, boot.settings, self._store, boot.admin_token, self._siblings)
        sock = await asyncio.to_thread(open_door, boot.door, 10.0)
        requests = Path(boot.home) / "logs" / "requests.jsonl"
        log = RequestLog(requests, boot.settings.gateway.log_sample, unique)
        self._server = HttpServer(sock, self._table, app, boot.settings, self._metrics, log)
        await self._server.start()
        self._polled_s = time.monotonic()
        self._task = self._loop.create_task(self._follow())
        keep_freed_memory()
        freeze_start_up()

    def _read(self) -> bool:
        """Poll the store; in a thread. True if something changed."""
        changed = self._follower.poll()
        now_s = time.monotonic()
        if changed or now_s - self._statuses_s > STATUS_S:
            try:
                self._statuses = {model: self._store.statuses(model) for model in self._follower.documents}
                self._statuses_s = now_s
                self._node_drains = any(
                    node.id == self._node and node.state != "UP" for node in self._store.nodes.reports().nodes
                )
            except StoreUnavailable:
                pass
        return bool(changed)

    async def _follow(self) -> None:
        """Keep the routing table like the store for as long as the gateway lives."""
        poll_s = self._boot.settings.gateway.poll_s
        while True:
            try:
                await asyncio.to_thread(self._store.wait, poll_s)
            except StoreUnavailable:
                await asyncio.sleep(poll_s)
            try:
                if await asyncio.to_thread(self._read) or self._table.behind:
                    self._table.apply(self._follower.documents)
                self._table.know(self._statuses)
                if self._node_drains and not self._server.draining:
                    self._server.announce_leaving()
            except ServingError as error:
                log.warning("the routing table was not changed: %s", error.message)
            except Exception:
                log.exception("the routing table was not changed")
            self._polled_s = time.monotonic()

    def _connect(self, model: str, record: VersionRecord) -> VersionClient:
        """A client for one version, told of its replicas by Serve's own broadcast."""
        key = (model, record.version)
        application = apps.app_name(model, record.version)
        client = VersionClient(
            record,
            self._boot.settings.gateway,
            self._boot.wire_secret,
            self._node,
            lambda: self._wake(key),
        )

        def told(replicas: Addresses) -> None:
            self._loop.call_soon_threadsafe(client.update, replicas)

        if key not in self._handles:
            # Made here, not got from Serve: Serve would hand out the one that was shut down when the version last left.
            handle = DeploymentHandle(apps.MODEL_DEPLOYMENT, application)
            handle._init()
            self._handles[key] = handle
        MEMBERSHIP.listen(application, told)
        return client

    def _disconnect(self, model: str, client: VersionClient) -> None:
        key = (model, client.record.version)
        if key not in self._table.arms():
            MEMBERSHIP.forget(apps.app_name(*key))
            handle = self._handles.pop(key, None)
            if handle is not None:
                self._loop.run_in_executor(None, handle.shutdown)
        task = self._loop.create_task(self._leave(client))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, client: VersionClient) -> None:
        """Let a client's requests be answered, for as long as somebody is there to answer them."""
        end_s = self._loop.time() + self._boot.settings.gateway.max_deadline_s
        deserted_s = 0.0
        while self._loop.time() < end_s and deserted_s < DESERTED_S and not await client.drain(0.2):
            deserted_s = 0.0 if client.connected else deserted_s + 0.2
        client.close()

    def _wake(self, key: tuple[str, str]) -> None:
        """Requests wait and there is no replica: a queued call tells Serve's autoscaler."""
        handle = self._handles.get(key)
        if handle is None or key in self._waking:
            return
        self._waking[key] = self._loop.create_task(self._wait_awake(key, handle))

    async def _wait_awake(self, key: tuple[str, str], handle: DeploymentHandle) -> None:
        try:
            await asyncio.wait_for(handle.wake.remote(), self._boot.settings.gateway.max_deadline_s)
        except Exception as error:  # whatever it was, waiting requests have their own deadlines
            log.warning("waking %s:%s: %s", *key, type(error).__name__)
        finally:
            self._waking.pop(key, None)

    async def check_health(self) -> None:
        """Raises if the gateway no longer listens or no longer follows the store."""
        if self._task.done() or time.monotonic() - self._polled_s > FOLLOW_S:
            raise RuntimeError("the gateway no longer follows the store")
        self._server.check()

    async def __del__(self) -> None:
        """Serve awaits this when it stops the gateway: stop accepting, answer what was accepted."""
        server = getattr(self, "_server", None)
        if server is not None:
            self._task.cancel()
            await server.drain(self._boot.settings.gateway.max_deadline_s)
            await server.stop()
            self._siblings.close()
            self._table.close()
