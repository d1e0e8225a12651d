"""A gateway's connection to one replica: dials, shakes hands, dials again after a growing pause.

Only connecting uses a task; frames go straight from the socket to the owner.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Protocol

from deployments.call import Buffer
from deployments.wire.connection import FrameConnection
from deployments.wire.frames import (
    FRIEND,
    Challenge,
    Frame,
    FrameError,
    Hello,
    Kind,
    Proof,
    Welcome,
    decode_meta,
    encode_frame,
)
from deployments.wire.handshake import GATEWAY, REPLICA, new_nonce, proof, proves

logger = logging.getLogger(__name__)

DIAL_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


class LinkOwner(Protocol):
    """Who uses the link. All calls come from the event loop."""

    def link_up(self, link: Link, welcome: Welcome) -> None: ...

    def link_frame(self, link: Link, frame: Frame) -> None:
        """A frame after the handshake. Raises: FrameError, which closes the connection."""

    def link_down(self, link: Link, reason: str) -> None:
        """Once after each `link_up`."""


class Link:
    """One replica. `key` is the number of the present connection; every connection has a new one."""

    _last_key = 0

    def __init__(
        self, replica: str, addresses: dict[str, str], owner: LinkOwner, secret: str, node_id: str, digest: str
    ) -> None:
        self.replica = replica
        self.addresses = addresses
        self.key = 0
        self.up = False
        self.leaving = False  # goodbye was said: do not dial again
        self._owner = owner
        self._secret = secret
        self._node_id = node_id
        self._digest = digest
        self._connection: FrameConnection | None = None
        self._nonce = b""
        self._proved = False  # the replica, on the present connection
        self._was_up = False  # the present connection, at some time
        self._ended: asyncio.Future[None] | None = None  # of the present connection
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_connected())

    def send(self, buffers: Sequence[Buffer]) -> None:
        if self._connection is not None:
            self._connection.send(buffers)

    def leave(self) -> None:
        """Do not dial again; close at once if nothing is connected."""
        self.leaving = True
        if not self.up:
            self.stop()

    def stop(self, reason: str = "the gateway closes") -> None:
        """Close at once."""
        self.leaving = True
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.abort(reason)

    async def _keep_connected(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            self._ended = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    await self._dial()
            except (OSError, TimeoutError) as error:
                logger.info("wire_dial_failed", extra={"replica": self.replica, "reason": str(error)})
            else:
                timer = asyncio.get_running_loop().call_later(DIAL_TIMEOUT_S, self._give_up)
                await self._ended
                timer.cancel()
                if self._was_up:
                    pause_s = FIRST_PAUSE_S
            if self.leaving:
                return
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _dial(self) -> None:
        """Raises: OSError if nobody answers, or there is no address to try."""
        self._proved = self._was_up = False
        loop = asyncio.get_running_loop()
        here = self.addresses.get("node") == self._node_id
        if here and self.addresses.get("unix"):
            await loop.create_unix_connection(self._new_connection, self.addresses["unix"])
        elif self.addresses.get("tcp"):
            host, _, port = self.addresses["tcp"].rpartition(":")
            await loop.create_connection(self._new_connection, host, int(port))
        else:
            raise OSError(f"replica {self.replica} has no address that this node can reach")

    def _new_connection(self) -> FrameConnection:
        return FrameConnection(self._opened, self._received, self._lost, reads_while_stalled=True)

    def _give_up(self) -> None:
        if not self.up and self._connection is not None:
            self._connection.abort("no welcome in time")

    def _opened(self, connection: FrameConnection) -> None:
        self._connection = connection
        self._nonce = new_nonce()
        connection.send([encode_frame(Kind.HELLO, Hello(self._nonce))])

    def _received(self, frame: Frame) -> None:
        if self.up:
            self._owner.link_frame(self, frame)
        elif frame.kind is Kind.CHALLENGE:
            self._prove(decode_meta(frame, Challenge))
        elif frame.kind is Kind.WELCOME:
            self._welcome(decode_meta(frame, Welcome))
        else:
            raise FrameError(f"{frame.kind.name} before the handshake is done")

    def _prove(self, challenge: Challenge) -> None:
        assert self._connection is not None
        nonces = (self._nonce, challenge.nonce)
        if self._proved or not proves(challenge.proof, self._secret, REPLICA, *nonces):
            raise FrameError("the replica does not know the secret")
        self._proved = True
        self._connection.send([encode_frame(Kind.PROOF, Proof(proof(self._secret, GATEWAY, *nonces)))])

    def _welcome(self, welcome: Welcome) -> None:
        assert self._connection is not None
        if not self._proved:
            raise FrameError("WELCOME before CHALLENGE")
        for name, expected, got in (
            ("instance", self.addresses.get("instance"), welcome.instance),
            ("digest", self._digest, welcome.digest),
        ):
            if expected and got and expected != got:
                raise FrameError(f"replica {self.replica}: expected {name} {expected}, got {got}")
        Link._last_key += 1
        self.key = Link._last_key
        self.up = self._was_up = True
        self._connection.admit(FRIEND)
        self._owner.link_up(self, welcome)

    def _lost(self, reason: str) -> None:
        self._connection = None
        if self.up:
            self.up = False
            self._owner.link_down(self, reason)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
