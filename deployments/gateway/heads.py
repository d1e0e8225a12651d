"""Heads of inference requests that were met before, recognised by their bytes.

A client sends the same head with every request of its kind. What the parser and admission said of those bytes once
holds whenever they come again at the start of a request, so neither is asked again. Heads that differ in every request
(a trace id, say) are parsed every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.names import Target

if TYPE_CHECKING:
    from deployments.gateway.exchanges import Exchange

MAX_HEAD_BYTES = 2048
_KEPT_HEADS = 256
_MET_ONCE = 4096
_END = b"\r\n\r\n"
_CHANGES_FRAMING = frozenset((b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"))


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of an accepted request to `target` by its head: `length` bytes of body follow it."""

    target: Target
    url: bytes
    headers: list[tuple[bytes, bytes]]
    fields: dict[bytes, bytes]
    length: int


def head_end(data: bytes) -> int:
    """Where the head ends that `data` begins with; 3 if it is not whole or too long to be kept."""
    return data.find(_END, 0, MAX_HEAD_BYTES) + len(_END)


class KnownHeads:
    """Bounded; shared by the connections of a gateway. `by_bytes` is for look-ups only.

    A head is kept when it comes for the second time, so that heads which come once do not push out others.
    """

    def __init__(self) -> None:
        self.by_bytes: dict[bytes, Head] = {}
        self._met: set[int] = set()

    def learn(self, data: bytes, exchange: Exchange, received: int) -> None:
        """Remember the head that `data` began with and `exchange` was made of.

        `received` is how many bytes of the body the parser took from `data`: the head is what lies before them, unless
        its end is not where it seems to be.
        """
        target, length = exchange.target, exchange.fields.get(b"content-length")
        end = head_end(data)
        if (
            target is None
            or length is None
            or not exchange.keep_alive
            or end + received != len(data)
            or not _CHANGES_FRAMING.isdisjoint(exchange.fields)
        ):
            return
        raw = data[:end]
        met = hash(raw)
        if met not in self._met:
            if len(self._met) >= _MET_ONCE:
                self._met.clear()
            self._met.add(met)
            return
        if len(self.by_bytes) >= _KEPT_HEADS:
            del self.by_bytes[next(iter(self.by_bytes))]
        self.by_bytes[raw] = Head(target, exchange.url, exchange.headers, exchange.fields, int(length))
