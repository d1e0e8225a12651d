"""The gateways of one node ask each other what they have counted.

Each listens on a Unix socket in the home's folder for sockets and answers every connection with its reading. One whose
process has ended is not there any more; one that does not answer in time is left out and counted as silent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from deployments.metrics import Metrics
from deployments.readings import NodeReading, Reading, pack, unpack
from deployments.wire.server import bind_unix

logger = logging.getLogger("prism.gateway")

ANSWER_S = 0.5
MAX_READING_BYTES = 64 << 20
_ABANDONED_S = 10.0  # a socket file nobody listens on, and that is so old, belongs to a process that was killed


class Siblings:
    """`folder` may be None: then there are none. Used on the gateway's event loop."""

    def __init__(self, metrics: Metrics, folder: Path | None = None, node: str = "") -> None:
        self._metrics = metrics
        self._folder = folder
        self._prefix = f"g-{node[:8]}-"  # a test's nodes may share a machine
        self._own = None if folder is None else folder / f"{self._prefix}{metrics.gateway}.sock"
        self._server: asyncio.Server | None = None
        self._asking: asyncio.Task[NodeReading] | None = None

    async def listen(self) -> None:
        """Answer siblings from now on. Raises: OSError."""
        if self._own is not None:
            self._server = await asyncio.start_unix_server(self._answer, sock=bind_unix(str(self._own)))

    def close(self) -> None:
        """Answer no more. Idempotent."""
        if self._server is not None and self._own is not None:
            self._server.close()
            self._own.unlink(missing_ok=True)
            self._server = None

    async def read(self) -> NodeReading:
        """Every gateway of the node, within little more than `ANSWER_S`; whoever asks meanwhile shares the answer."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._collect())
        return await asyncio.shield(self._asking)

    async def _collect(self) -> NodeReading:
        others = (
            [] if self._folder is None else [p for p in self._folder.glob(f"{self._prefix}*.sock") if p != self._own]
        )
        found = await asyncio.gather(*(self._ask(path) for path in others))
        readings = [reading for reading in found if isinstance(reading, Reading)]
        silent = sum(reading is None for reading in found)
        return NodeReading((Reading.of(self._metrics), *readings), silent)

    async def _ask(self, path: Path) -> Reading | bool | None:
        """What a sibling says; False if it has ended, None if it does not say."""
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(path, limit=MAX_READING_BYTES)
                try:
                    return unpack(await reader.read(-1))
                finally:
                    writer.close()
        except (ConnectionRefusedError, FileNotFoundError):
            _forget(path)
            return False
        except (OSError, TimeoutError, ValueError) as error:
            logger.warning("gateway_silent", extra={"socket": path.name, "reason": type(error).__name__})
            return None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(4 * ANSWER_S):
                writer.write(pack(Reading.of(self._metrics)))
                await writer.drain()
        except (OSError, TimeoutError):
            writer.transport.abort()
        finally:
            writer.close()


def _forget(path: Path) -> None:
    """Remove the socket of a process that was killed; a young one may be about to be listened on."""
    try:
        if time.time() - path.stat().st_mtime > _ABANDONED_S:
            path.unlink()
    except OSError:
        pass
