"""A replica's side of the wire: listens, lets gateways in that know the secret, hands their micro-batches to an engine.

Nothing is done per request here: a frame becomes one `MicroBatch`, its answer one frame.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster.errors import EngineFailed
from cluster.tensors import Signature
from deployments.wire.batches import Engine, MicroBatch, MicroResult
from deployments.wire.connection import FrameConnection
from deployments.wire.frames import (
    MAX_META_BYTES,
    Cancel,
    Challenge,
    Frame,
    FrameError,
    Hello,
    Infer,
    Kind,
    Limits,
    Proof,
    Rest,
    Welcome,
    decode_meta,
    encode_frame,
)
from deployments.wire.handshake import GATEWAY, REPLICA, check_secret, new_nonce, proof, proves
from deployments.wire.layout import decode_infer, encode_result

logger = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
MAX_STRANGERS = 64  # connections that have not proved anything yet; who is let in locally is not kept out by the rest
MAX_OPEN_CALLS = 256  # micro-batches one gateway may have open
BACKLOG_VALID_S = 3.0  # a gateway that has not told its backlog for so long has none


@dataclass(frozen=True, slots=True)
class WireSettings:
    """Where a replica listens and what it tells about itself.

    `unix_path` is created with mode 0600. `tcp_host` is the address that other nodes reach, "" for no TCP; the port is
    chosen by the system.
    """

    secret: str
    unix_path: str = ""
    tcp_host: str = ""
    node_id: str = ""
    digest: str = ""
    max_payload_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        check_secret(self.secret)


class WireServer:
    """Listens from `listen` until `drain`."""

    def __init__(self, engine: Engine, signature: Signature, settings: WireSettings) -> None:
        self.engine = engine
        self.signature = signature
        self.settings = settings
        self.instance = secrets.token_hex(8)
        self.draining = False
        self._servers: list[asyncio.Server] = []
        self._tcp_address = ""
        self._sessions: set[_Session] = set()
        self._empty: asyncio.Event = asyncio.Event()
        self._next_source = 0

    @classmethod
    async def listen(cls, engine: Engine, signature: Signature, settings: WireSettings) -> WireServer:
        """A server that accepts connections. Raises: OSError if an address cannot be bound; then nothing is."""
        server = cls(engine, signature, settings)
        try:
            await server._bind()
        except BaseException:
            server._close_listeners()
            raise
        return server

    def addresses(self) -> dict[str, str]:
        """What a gateway needs to connect: `unix`, `tcp` ("host:port"), each if there is one, `node`, `digest`,
        `instance`."""
        found = {"node": self.settings.node_id, "digest": self.settings.digest, "instance": self.instance}
        if self.settings.unix_path:
            found["unix"] = self.settings.unix_path
        if self._tcp_address:
            found["tcp"] = self._tcp_address
        return found

    def backlog_rows(self) -> int:
        """Rows that wait at the connected gateways for this version, as they last told."""
        now_s = time.monotonic()
        return sum(s.backlog_rows for s in self._sessions if now_s - s.backlog_at_s <= BACKLOG_VALID_S)

    @property
    def gateways(self) -> int:
        """Gateways connected."""
        return sum(session.admitted for session in self._sessions)

    @property
    def open_calls(self) -> int:
        """Micro-batches not answered yet."""
        return sum(len(session.calls) for session in self._sessions)

    async def drain(self, timeout_s: float) -> bool:
        """Take no new connections, answer everything that gateways have sent or still send, then close.

        Returns:
            Whether every gateway said goodbye and got all its answers within `timeout_s`.
        """
        self.draining = True
        self._close_listeners()
        for session in list(self._sessions):
            session.drain()
        clean = True
        if self._sessions:
            self._empty.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._empty.wait()
            except TimeoutError:
                clean = False
                logger.warning("wire_drain_timeout", extra={"open_calls": self.open_calls})
                for session in list(self._sessions):
                    session.abort("the replica stopped")
        return clean

    def opened(self, session: _Session) -> bool:
        """Whether the session may go on."""
        strangers = sum(not other.admitted and other.local == session.local for other in self._sessions)
        if self.draining or strangers >= MAX_STRANGERS:
            return False
        self._sessions.add(session)
        return True

    def closed(self, session: _Session) -> None:
        self._sessions.discard(session)
        if not self._sessions:
            self._empty.set()

    async def _bind(self) -> None:
        loop = asyncio.get_running_loop()
        if self.settings.unix_path:
            sock = bind_unix(self.settings.unix_path)
            self._servers.append(await loop.create_unix_server(partial(self._session, True), sock=sock))
        if self.settings.tcp_host:
            server = await loop.create_server(partial(self._session, False), host=self.settings.tcp_host, port=0)
            self._servers.append(server)
            port = server.sockets[0].getsockname()[1]
            self._tcp_address = f"{self.settings.tcp_host}:{port}"

    def _session(self, local: bool) -> FrameConnection:
        self._next_source += 1
        return _Session(self, self._next_source, local).connection

    def _close_listeners(self) -> None:
        if self._servers and self.settings.unix_path:
            Path(self.settings.unix_path).unlink(missing_ok=True)
        for server in self._servers:
            server.close()
        self._servers = []


class _Session:
    """One gateway's connection."""

    __slots__ = (
        "_loop",
        "_nonces",
        "_server",
        "_timer",
        "admitted",
        "backlog_at_s",
        "backlog_rows",
        "calls",
        "connection",
        "goodbye",
        "local",
        "source",
    )

    def __init__(self, server: WireServer, source: int, local: bool) -> None:
        self._server = server
        self.local = local  # over the Unix socket
        self._loop = asyncio.get_running_loop()
        self._nonces: tuple[bytes, bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.source = source
        self.admitted = False
        self.goodbye = False
        self.calls: dict[int, MicroBatch] = {}
        self.backlog_rows = 0
        self.backlog_at_s = 0.0
        self.connection = FrameConnection(self._opened, self._received, self._lost, reads_while_stalled=False)

    def drain(self) -> None:
        if self.admitted:
            self.connection.send([encode_frame(Kind.DRAIN)])
        else:
            self.abort("the replica drains")

    def abort(self, reason: str) -> None:
        self.connection.abort(reason)

    def _opened(self, connection: FrameConnection) -> None:
        if not self._server.opened(self):
            connection.abort("no more connections are taken")
            return
        self._timer = self._loop.call_later(HANDSHAKE_S, connection.abort, "no proof of the secret in time")

    def _lost(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        calls, self.calls = self.calls, {}
        self._server.closed(self)
        for batch in calls.values():
            self._server.engine.cancel(batch, range(len(batch.rows)))
        if self.admitted and not (self.goodbye and not calls):
            logger.info("wire_gateway_lost", extra={"reason": reason, "open_calls": len(calls)})

    def _received(self, frame: Frame) -> None:
        kind = frame.kind
        if not self.admitted:
            self._shake_hands(frame)
        elif kind is Kind.INFER:
            self._infer(frame)
        elif kind is Kind.PING:
            self._heard_backlog(decode_meta(frame, Rest).rows)
            engine = self._server.engine
            self.connection.send([encode_frame(Kind.PONG, Rest(engine.queue_rows(), engine.ahead_rows(self.source)))])
        elif kind is Kind.CANCEL:
            self._cancel(frame.call_id, decode_meta(frame, Cancel).indices)
        elif kind is Kind.GOODBYE:
            self.goodbye = True
            self._finish()
        else:
            raise FrameError(f"a gateway does not send {kind.name}")

    def _shake_hands(self, frame: Frame) -> None:
        secret = self._server.settings.secret
        if frame.kind is Kind.HELLO and self._nonces is None:
            theirs, ours = decode_meta(frame, Hello).nonce, new_nonce()
            self._nonces = (theirs, ours)
            shown = proof(secret, REPLICA, theirs, ours)
            self.connection.send([encode_frame(Kind.CHALLENGE, Challenge(ours, shown))])
        elif frame.kind is Kind.PROOF and self._nonces is not None:
            if not proves(decode_meta(frame, Proof).proof, secret, GATEWAY, *self._nonces):
                raise FrameError("the gateway does not know the secret")
            self._admit()
        else:
            raise FrameError(f"{frame.kind.name} before the handshake is done")

    def _admit(self) -> None:
        self.admitted = True
        if self._timer is not None:
            self._timer.cancel()
        settings = self._server.settings
        self.connection.admit(Limits(MAX_META_BYTES, settings.max_payload_bytes))
        engine = self._server.engine
        welcome = Welcome(
            self._server.instance,
            settings.digest,
            settings.max_payload_bytes,
            engine.queue_rows(),
            engine.ahead_rows(self.source),
        )
        self.connection.send([encode_frame(Kind.WELCOME, welcome)])
        if self._server.draining:
            self.drain()

    def _infer(self, frame: Frame) -> None:
        now_s = time.monotonic()
        meta = decode_meta(frame, Infer)
        call_id = frame.call_id
        if self.goodbye or call_id in self.calls or len(self.calls) >= MAX_OPEN_CALLS:
            raise FrameError(f"INFER {call_id}: after GOODBYE, a call id in use, or over {MAX_OPEN_CALLS} open")
        self._heard_backlog(meta.backlog_rows, now_s)
        batch = decode_infer(meta, frame.payload, self._server.signature, now_s, self.source)
        self.calls[call_id] = batch
        try:
            self._server.engine.submit(batch, partial(self._answer, call_id))
        except Exception:
            logger.exception("engine_submit_failed")
            error = EngineFailed("the engine did not take the batch")
            self._answer(call_id, MicroResult(None, dict.fromkeys(range(len(batch.rows)), error)))

    def _answer(self, call_id: int, result: MicroResult) -> None:
        batch = self.calls.pop(call_id, None)
        if batch is None:
            return  # the gateway is gone
        server = self._server
        engine = server.engine
        self.connection.send(
            encode_result(
                call_id,
                batch,
                result,
                server.signature,
                engine.queue_rows(),
                server.settings.max_payload_bytes,
                engine.ahead_rows(self.source),
            )
        )
        if self.goodbye:
            self._finish()

    def _cancel(self, call_id: int, indices: tuple[int, ...]) -> None:
        batch = self.calls.get(call_id)
        if batch is not None:  # else its answer is on the way
            known = [i for i in indices if i < len(batch.rows)]
            self._server.engine.cancel(batch, known)

    def _finish(self) -> None:
        """The gateway sends nothing more: close once it has all its answers."""
        if not self.calls:
            self.connection.send([encode_frame(Kind.DRAINED)])
            self.connection.close()

    def _heard_backlog(self, rows: int, now_s: float | None = None) -> None:
        self.backlog_rows = rows
        self.backlog_at_s = time.monotonic() if now_s is None else now_s


def bind_unix(path: str) -> socket.socket:
    """A bound socket that only its owner can connect to; a dead process's socket file is replaced.

    Raises: OSError, also if somebody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        if Path(path).is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    Path(path).unlink(missing_ok=True)
                else:
                    raise OSError(errno.EADDRINUSE, f"somebody listens on {path}")
        sock.bind(path)
        Path(path).chmod(0o600)
    except BaseException:
        sock.close()
        raise
    return sock
