"""A gateway's side of the wire for one version: `Pool` decides, this carries it out.

Once per turn of the event loop, however many requests arrived in it: one `step`, one frame per micro-batch. Answers
are handed out as their frame arrives. There is no task and no future per request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from math import inf, prod

from cluster.costs import CostCurve
from cluster.documents import VersionRecord
from cluster.errors import InvalidRequest, ModelNotReady, ServingError, TooLarge
from cluster.settings import GatewaySettings
from cluster.tensors import ANY
from deployments.call import BATCH, INTERACTIVE, Reply, TensorRequest, Ticket
from deployments.costs import told
from deployments.wire.calls import Entry, Ping, PoolSettings, SayGoodbye, Send, Want, Withdraw
from deployments.wire.frames import (
    Cancel,
    Frame,
    FrameError,
    Kind,
    Rest,
    Result,
    Welcome,
    decode_meta,
    encode_frame,
)
from deployments.wire.handshake import check_secret
from deployments.wire.layout import check_shapes, encode_infer, split_result
from deployments.wire.link import Link
from deployments.wire.pool import Pool

logger = logging.getLogger(__name__)

MAX_BATCH_BYTES = 64 << 20  # of a micro-batch with more than one request
MAX_REQUEST_BYTES = 255 << 20  # with padding still below what a replica accepts


def micro_batch_rows(record: VersionRecord, costs: CostCurve | None = None) -> int:
    """Rows a micro-batch may have: what was configured, else what pays by `costs`, or by what was published."""
    most = record.signature.max_rows
    configured = record.deploy.max_batch_rows if record.deploy is not None else 0
    return min(configured, most) if configured else (costs or record.costs).best_rows(most)


class VersionClient:
    """One version's replicas as a gateway sees them; an `Arm`. Everything happens on the loop it was made on.

    `on_wanted` is called about once a second while requests wait and there is no replica.
    """

    def __init__(
        self,
        record: VersionRecord,
        settings: GatewaySettings,
        secret: str,
        node_id: str,
        on_wanted: Callable[[], None],
    ) -> None:
        self.record = record
        self._costs = record.costs
        self._signature = record.signature
        self._secret = check_secret(secret)
        self._node_id = node_id
        self._on_wanted = on_wanted
        self._loop = asyncio.get_running_loop()
        self._pool = Pool(
            PoolSettings(
                batch_rows=min(micro_batch_rows(record), settings.max_waiting_rows),  # more could never come together
                batch_bytes=MAX_BATCH_BYTES,
                in_flight=settings.in_flight_per_replica,
                max_waiting_rows=settings.max_waiting_rows,
                max_waiting_bytes=settings.max_waiting_bytes,
                run_s=record.costs.run_s,
            )
        )
        self._max_rows = record.signature.max_rows
        self._max_bytes = min(MAX_REQUEST_BYTES, settings.max_waiting_bytes)
        self._fixed_row_bytes = _fixed_row_bytes(record)
        self._links: dict[str, Link] = {}  # members
        self._by_key: dict[int, Link] = {}  # connected, leaving ones included
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = inf
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether a replica is connected, or a request may wake one."""
        deploy = self.record.deploy
        return self._pool.usable > 0 or (deploy is not None and deploy.min_replicas == 0)

    @property
    def waiting_rows(self) -> int:
        """Rows that wait here for a replica."""
        return self._pool.waiting_rows

    @property
    def in_flight_rows(self) -> int:
        """Rows at replicas, not answered yet."""
        return self._pool.in_flight_rows

    @property
    def connected(self) -> int:
        """Replicas that take work."""
        return self._pool.usable

    @property
    def answered(self) -> int:
        """Of these the ones that have answered since they connected."""
        return self._pool.answered

    def submit(self, request: TensorRequest, reply: Reply) -> Ticket:
        """See `Arm.submit`."""
        entry = Entry(self, request, reply)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._tick)
        refusal = self._admit(entry)
        if refusal is not None:
            self._pool.refuse(entry, refusal)
        return entry

    def withdraw(self, entry: Entry) -> None:
        """Part of `Entry.cancel`."""
        self._pool.cancel(entry)
        self._schedule()

    def update(self, replicas: Mapping[str, dict[str, str]]) -> None:
        """Membership: replica id -> addresses as `WireServer.addresses` gave them.

        New replicas are connected, others are sent nothing more and left once they have answered. What batches cost is
        taken from what the replicas measured, if they did.
        """
        if self._closed:
            return
        self._reckon_with(told(replicas.values()))
        for replica in [r for r, link in self._links.items() if replicas.get(r) != link.addresses]:
            self._part(self._links.pop(replica))
        for replica, addresses in replicas.items():
            if replica not in self._links:
                link = Link(replica, dict(addresses), self, self._secret, self._node_id, self.record.digest)
                self._links[replica] = link
                link.start()
        self._schedule()

    def give_up(self, error: ServingError) -> None:
        """Answer what waits for a replica with `error`; what comes later waits again."""
        self._pool.fail_waiting(error)
        self._schedule()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until nothing waits and nothing is in flight. Returns: whether that was so within `timeout_s`."""
        end_s = time.monotonic() + timeout_s
        while self._pool.waiting_rows or self._pool.in_flight_rows:
            if time.monotonic() >= end_s:
                return False
            await asyncio.sleep(0.01)
        return True

    def close(self) -> None:
        """Refuse what comes and what waits; what is in flight is still answered, then its replica is left."""
        if self._closed:
            return
        self._closed = True
        self._pool.fail_waiting(ModelNotReady("the version is no longer served here"))
        for link in self._links.values():
            self._part(link)
        self._links.clear()
        self._schedule()

    def link_up(self, link: Link, welcome: Welcome) -> None:
        self._by_key[link.key] = link
        node = link.addresses.get("node", "")
        self._pool.connected(link.key, welcome.queue_rows, time.monotonic(), welcome.ahead_rows, node)
        if link.leaving:
            self._pool.draining(link.key)
        self._schedule()

    def link_down(self, link: Link, reason: str) -> None:
        self._by_key.pop(link.key, None)
        self._pool.lost(link.key)
        if self._closed:
            self._pool.fail_waiting(ModelNotReady("the version is no longer served here"))
        if not link.leaving:
            logger.info("wire_replica_lost", extra={"replica": link.replica, "reason": reason})
        self._schedule()

    def link_frame(self, link: Link, frame: Frame) -> None:
        now_s = time.monotonic()
        kind = frame.kind
        if kind is Kind.RESULT:
            meta = decode_meta(frame, Result)
            split = partial(split_result, meta, frame.payload, signature=self._signature)
            self._pool.result(link.key, frame.call_id, meta.queue_rows, now_s, split, meta.ahead_rows)
            self._deliver()
        elif kind is Kind.PONG:
            rest = decode_meta(frame, Rest)
            self._pool.heard(link.key, rest.rows, now_s, rest.ahead_rows)
        elif kind is Kind.DRAIN:
            self._pool.heard(link.key, None, now_s)
            self._pool.draining(link.key)
        elif kind is Kind.DRAINED:
            link.stop("drained")
        else:
            raise FrameError(f"a replica does not send {kind.name}")
        self._schedule()

    def _admit(self, entry: Entry) -> ServingError | None:
        """Give the request to the pool, or say why not.

        One request that does not fit the signature would spoil the whole frame, so sizes are checked once more.
        """
        request, rows = entry.request, entry.rows
        data = request.data
        size = len(data[0]) if len(data) == 1 else sum(map(len, data))
        if rows < 1 or rows > self._max_rows:
            return InvalidRequest(f"rows: expected 1 to {self._max_rows}, got {rows}")
        if request.priority not in (INTERACTIVE, BATCH):
            return InvalidRequest(f"priority: expected {INTERACTIVE} or {BATCH}, got {request.priority}")
        if size > self._max_bytes:
            return TooLarge(f"inputs: {size} bytes, at most {self._max_bytes} are accepted")
        if self._closed:
            return ModelNotReady("the version is no longer served here")
        if self._fixed_row_bytes:
            if size != rows * self._fixed_row_bytes:
                return InvalidRequest(f"inputs: {rows} rows need {rows * self._fixed_row_bytes} bytes, got {size}")
            self._pool.submit(entry, request.priority, size)
            return None
        error = check_shapes(request, self._signature)
        if error is None:
            tails = tuple([shape[1:] for shape in request.shapes])
            self._pool.submit(entry, (request.priority, tails), size)
        return error

    def _reckon_with(self, costs: CostCurve) -> None:
        if costs.rows and costs != self._costs:
            self._costs = costs
            most = self._pool.settings.max_waiting_rows
            self._pool.reckon_with(min(micro_batch_rows(self.record, costs), most), costs.run_s)

    def _part(self, link: Link) -> None:
        link.leave()
        if link.up:
            self._pool.draining(link.key)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._scheduled = False
        now_s = time.monotonic()
        pool = self._pool
        for action in pool.step(now_s):
            if type(action) is Send:
                frame = encode_infer(action.call_id, action.requests, self._signature.batched, pool.waiting_rows, now_s)
                self._by_key[action.peer].send(frame)
            elif type(action) is Ping:
                self._by_key[action.peer].send([encode_frame(Kind.PING, Rest(pool.waiting_rows))])
            elif type(action) is Withdraw:
                link = self._by_key.get(action.peer)
                if link is not None:
                    link.send([encode_frame(Kind.CANCEL, Cancel((action.index,)), action.call_id)])
            elif type(action) is SayGoodbye:
                link = self._by_key.get(action.peer)
                if link is not None:
                    link.send([encode_frame(Kind.GOODBYE)])
            elif type(action) is Want:
                self._on_wanted()
        self._deliver()
        self._set_timer(now_s)

    def _deliver(self) -> None:
        answers = self._pool.answers
        if not answers:
            return
        self._pool.answers = []
        for reply, outcome in answers:
            try:
                reply(outcome)
            except Exception:
                logger.exception("reply_failed")

    def _set_timer(self, now_s: float) -> None:
        """Have `_tick` called by the time the pool wants it; a timer that is early does no harm."""
        wake_s = self._pool.wake_s()
        if self._timer is not None:
            if self._timer_at_s <= wake_s:
                return
            self._timer.cancel()
            self._timer = None
        if wake_s != inf:
            self._timer_at_s = wake_s
            self._timer = self._loop.call_later(max(0.0, wake_s - now_s), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._timer_at_s = inf
        self._schedule()


def _fixed_row_bytes(record: VersionRecord) -> int:
    """Bytes of one row of all inputs, or 0 where requests may differ in shape."""
    signature = record.signature
    if not signature.batched:
        fixed = all(spec.item_bytes and ANY not in spec.shape for spec in signature.inputs)
        return sum(prod(spec.shape) * spec.item_bytes for spec in signature.inputs) if fixed else 0
    sizes = [spec.row_bytes() for spec in signature.inputs]
    return sum(size for size in sizes if size is not None) if all(sizes) else 0
