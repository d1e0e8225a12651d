"""The gateway's HTTP server: uvicorn's, in a loop that is already running, on a socket somebody else has opened."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from starlette.types import ASGIApp
from uvicorn import Config, Server

from cluster.errors import OperatorError
from cluster.settings import Settings
from deployments.gateway.dispatch import Dispatcher
from deployments.gateway.http_protocol import GatewayProtocol
from deployments.gateway.inference import Inference
from deployments.gateway.request_log import RequestLog
from deployments.metrics import Metrics

logger = logging.getLogger("prism.gateway")

GRACE_S = 0.5  # how long busy clients are given to see `Connection: close` before idle connections are closed
_STEP_S = 0.05


class HttpServer:
    """Listens on `sock` from `start` to `drain` or `stop`; the socket is closed here, not elsewhere.

    `settings.http` bounds sizes, times and connections.
    """

    def __init__(
        self,
        sock: socket.socket,
        dispatcher: Dispatcher,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        log: RequestLog | None = None,
    ) -> None:
        self._sock = sock
        self._inference = Inference(dispatcher, settings, metrics, log)
        protocol = partial(GatewayProtocol, inference=self._inference)
        config = Config(
            app,
            http=cast("type[asyncio.Protocol]", protocol),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=2048,
        )
        self._server = _Server(config, self._inference)
        self._task: asyncio.Task[None] | None = None

    @property
    def draining(self) -> bool:
        return self._inference.draining

    async def start(self) -> None:
        """Listen. Returns once connections are accepted. Raises: OperatorError."""
        self._sock.setblocking(False)
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._sock]))
        while not self._server.started:
            if self._task.done():
                error = self._task.exception()
                raise OperatorError(f"the HTTP server did not start: {error}")
            await asyncio.sleep(0.001)

    def check(self) -> None:
        """Raises: OperatorError if the server has stopped by itself."""
        if self._task is None or (self._task.done() and not self._inference.draining):
            raise OperatorError("the HTTP server no longer listens")

    def announce_leaving(self) -> None:
        """From now on health checks fail and answers say `Connection: close`; whoever still comes is answered."""
        self._inference.draining = True

    async def drain(self, timeout_s: float) -> bool:
        """Accept no more connections, answer what was accepted, close. Returns: whether all was answered in time.

        Requests that still arrive on open connections are answered, with `Connection: close`.
        """
        self._inference.draining = True
        if self._task is None:
            return True
        start_s = time.monotonic()
        self._server.refuse_connections()
        await self._emptied(start_s + min(GRACE_S, timeout_s))
        for protocol in self._server.protocols():
            protocol.shutdown()
        if await self._emptied(start_s + timeout_s):
            return True
        logger.warning("drain_incomplete", extra={"connections": len(self._server.protocols())})
        return False

    async def _emptied(self, until_s: float) -> bool:
        """Whether all connections were closed before `until_s`."""
        while self._server.protocols():
            if time.monotonic() >= until_s:
                return False
            await asyncio.sleep(_STEP_S)
        return True

    async def stop(self) -> None:
        """Close the socket and every connection, whatever is under way on it."""
        self._inference.draining = True
        await asyncio.to_thread(self._inference.write_log)
        task, self._task = self._task, None
        if task is None:
            self._sock.close()
            return
        self._server.refuse_connections()
        for protocol in self._server.protocols():
            protocol.transport.abort()
        # uvicorn's own shutdown waits a while for what was just aborted.
        under_way = [task, *self._server.server_state.tasks]
        for each in under_way:
            each.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


class _Server(Server):
    """uvicorn's server without signal handlers, whose tick also looks after time limits."""

    def __init__(self, config: Config, inference: Inference) -> None:
        super().__init__(config)
        self._inference = inference

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def protocols(self) -> list[GatewayProtocol]:
        return cast("list[GatewayProtocol]", list(self.server_state.connections))

    def refuse_connections(self) -> None:
        """Close the listening socket; connections stay."""
        for server in self.servers:
            server.close()

    async def on_tick(self, counter: int) -> bool:
        """Every 0.1 s."""
        done: Any = await super().on_tick(counter)
        self._inference.common_headers(self.server_state.default_headers)
        if counter % 2 == 0:
            now_s = time.monotonic()
            for protocol in self.protocols():
                protocol.expire(now_s)
        if counter % 20 == 0:
            self._inference.sweep()
            if self._inference.log_waits:
                asyncio.get_running_loop().run_in_executor(None, self._inference.write_log)
        return bool(done)
