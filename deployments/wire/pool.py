"""Which request goes to which replica when, for one model version: a state machine without sockets or clock.

How it works. Requests wait in lanes, one per (priority, shape), because only such requests may share a micro-batch.
`step` makes micro-batches out of them while some replica has a free slot: the oldest waiting request of the class
whose turn it is decides the lane, the replica with the fewest outstanding rows gets it. So whatever arrived while
micro-batches were in flight goes out with the next one, and an idle pool sends at once. What cannot be answered by its
deadline even at best (`cluster.policy.arrival`) is refused when it comes.

When a replica's connection breaks, its unanswered requests become suspects: each has one more chance, alone on a
replica, with nothing else in flight there, so that a request which kills replicas takes no other with it. That is a
replica of another node if there is one: a node that dies takes its replicas along, one shortly after the other, and
no request is to blame. A replica that stays silent while it owes answers is set aside until it speaks, and what it
owes is tried elsewhere if there is an elsewhere. Each micro-batch has a call id of its own; a result for a call that
is no longer open is dropped.

The shell (`deployments.wire.client`) tells events through the methods, calls `step`, carries out the actions it
returns, and calls every reply in `answers`, which it empties. Times are on the shell's monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

from cluster.errors import Cancelled, DeadlineExceeded, EngineFailed, Overloaded, ServingError
from cluster.policy.arrival import Arrivals, Pace, too_late
from cluster.policy.dispatch import better_held, least_loaded
from deployments.call import INTERACTIVE, Reply, TensorAnswer
from deployments.wire.calls import (
    DONE,
    NO_REQUEST,
    SENT,
    WAITING,
    Action,
    Call,
    Entry,
    Outcome,
    Peer,
    Ping,
    PoolSettings,
    SayGoodbye,
    Send,
    Want,
    Withdraw,
)
from deployments.wire.lanes import Lanes

MAX_ATTEMPTS = 2
SILENCE_S = 1.0  # the least silence that sets a replica aside
BUSY_PING_S = 0.3  # how often a replica that owes answers is asked for a sign of life
IDLE_PING_S = 1.0
WANTED_S = 1.0  # how often the shell is reminded that requests wait for a version without replicas


class Pool:
    """See the module's text. Every submitted entry appears in `answers` exactly once."""

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self.answers: list[tuple[Reply, Outcome]] = []
        self.waiting_rows = 0
        self.waiting_bytes = 0
        self.peers: dict[int, Peer] = {}
        self._lanes = Lanes()
        self._suspects: deque[Entry] = deque()
        self._waiting = 0
        self._patient_rows = 0  # of waiting_rows: in lanes of the less urgent class
        self._beyond_rows = 0  # over all replicas: `outstanding_rows` and `ahead_rows`
        self._now_s = -inf  # of the last event: at most a turn of the loop ago while there is work
        self._pace = Pace(Arrivals(settings.batch_rows, settings.run_s))
        self._seq = 0
        self._last_call = 0
        self._actions: list[Action] = []
        self._deadline_s = inf  # no live entry has an earlier one
        self._watch_s = inf  # when to look at the peers again
        self._want_s = -inf

    def reckon_with(self, batch_rows: int, run_s: Callable[[int], float]) -> None:
        """From now on these are the batches that pay, and what they take."""
        self.settings = replace(self.settings, batch_rows=batch_rows, run_s=run_s)
        self._pace = Pace(Arrivals(batch_rows, run_s))

    def submit(self, entry: Entry, key: object, size_bytes: int) -> None:
        """Take a request in, or refuse it. `key`: requests with equal keys and priority may share a micro-batch."""
        rows, arrivals, settings = entry.rows, self._pace.arrivals, self.settings
        refusal: ServingError | None = None
        if self.waiting_rows + rows > settings.max_waiting_rows:
            refusal = Overloaded(f"{self.waiting_rows} rows wait, at most {settings.max_waiting_rows} may")
        elif self.waiting_bytes + size_bytes > settings.max_waiting_bytes:
            refusal = Overloaded(f"{self.waiting_bytes} bytes wait, at most {settings.max_waiting_bytes} may")
        elif entry.deadline_s < self._now_s + (self.waiting_rows + self._beyond_rows + rows) * arrivals.row_s:
            refusal = self._late(entry, self._now_s)  # else one replica alone could do it in time, row by row
        if refusal is not None:
            self.refuse(entry, refusal)
            return
        entry.size_bytes = size_bytes
        entry.state = WAITING
        entry.seq = self._seq = self._seq + 1
        self.waiting_rows += rows
        self.waiting_bytes += size_bytes
        self._waiting += 1
        if entry.deadline_s < self._deadline_s:
            self._deadline_s = entry.deadline_s
        if entry.request.priority != INTERACTIVE:
            self._patient_rows += rows
        self._lanes.add(entry, key)

    def refuse(self, entry: Entry, error: ServingError) -> None:
        """Answer an entry that was never taken in."""
        entry.state = DONE
        self.answers.append((entry.reply, error))

    def cancel(self, entry: Entry) -> None:
        """The submitter lost interest."""
        if entry.state == DONE:
            return
        call = entry.call
        if call is not None:
            self._actions.append(Withdraw(call.peer.key, call.id, call.entries.index(entry)))
        self._settle(entry, Cancelled("the client went away"))

    def fail_waiting(self, error: ServingError) -> None:
        """Answer everything that is not in flight."""
        for entry in self._all_waiting():
            self._settle(entry, error)

    def connected(self, key: int, queue_rows: int, now_s: float, ahead_rows: int = 0, node: str = "") -> None:
        """A replica can be used from now on."""
        self.peers[key] = Peer(key, queue_rows, now_s, ahead_rows, node)
        self._beyond_rows += ahead_rows
        self._now_s = now_s
        self._pace.forget()
        self._watch_s = min(self._watch_s, now_s + BUSY_PING_S)

    def lost(self, key: int) -> None:
        """A connection is gone. What it owes is tried once more elsewhere, or failed."""
        peer = self.peers.pop(key, None)
        if peer is None:
            return
        self._beyond_rows -= peer.outstanding_rows + peer.ahead_rows
        for call in peer.calls.values():
            self._suspect(call, "two replicas went away while they computed this request")
        peer.calls.clear()

    def draining(self, key: int) -> None:
        """Send this replica nothing more, by its wish or because it is no longer a member."""
        peer = self.peers.get(key)
        if peer is not None and not peer.draining:
            peer.draining = True
            peer.exclusive = False
            self._actions.append(SayGoodbye(key))

    def heard(self, key: int, queue_rows: int | None, now_s: float, ahead_rows: int = 0) -> None:
        """A frame came from the replica."""
        peer = self.peers.get(key)
        if peer is not None:
            peer.heard_s = now_s
            peer.silent = False
            if queue_rows is not None:
                self._told(peer, queue_rows, ahead_rows, now_s)

    def result(
        self,
        key: int,
        call_id: int,
        queue_rows: int,
        now_s: float,
        split: Callable[[list[int]], Sequence[Outcome]],
        ahead_rows: int = 0,
    ) -> None:
        """A micro-batch was answered.

        `split` makes one outcome per request of the micro-batch, given their rows; what it raises passes through, and
        then nothing has changed.
        """
        peer = self.peers.get(key)
        if peer is None:
            return
        call = peer.calls.get(call_id)
        if call is not None:
            outcomes = split([entry.rows for entry in call.entries])
            del peer.calls[call_id]
            peer.outstanding_rows -= call.rows
            self._beyond_rows -= call.rows
            peer.exclusive = False
            peer.answered_s = now_s
            self.answers += call.settled(outcomes)
            answer = next((outcome for outcome in outcomes if isinstance(outcome, TensorAnswer)), None)
            if answer is not None:
                self._pace.took(answer.batch_rows, answer.compute_s, now_s)
        peer.heard_s = now_s
        peer.silent = False
        self._told(peer, queue_rows, ahead_rows, now_s)

    def step(self, now_s: float) -> list[Action]:
        """What to do now, in this order."""
        self._now_s = now_s
        if now_s >= self._deadline_s:
            self._expire(now_s)
        if now_s >= self._watch_s:
            self._watch(now_s)
        if self._waiting:
            self._dispatch(now_s)
            if self._waiting and now_s >= self._want_s and self._deserted():
                self._want_s = now_s + WANTED_S
                self._actions.append(Want())
        actions, self._actions = self._actions, []
        return actions

    def wake_s(self) -> float:
        """When to call `step` again if nothing happens before."""
        want_s = self._want_s if self._waiting and self._deserted() else inf
        return min(self._deadline_s, self._watch_s, want_s)

    @property
    def in_flight_rows(self) -> int:
        return sum(peer.outstanding_rows for peer in self.peers.values())

    @property
    def usable(self) -> int:
        """Replicas that may be sent work."""
        return sum(peer.usable for peer in self.peers.values())

    @property
    def answered(self) -> int:
        """Of these the ones that have answered since they connected."""
        return sum(peer.usable and peer.has_answered for peer in self.peers.values())

    def _told(self, peer: Peer, queue_rows: int, ahead_rows: int, now_s: float) -> None:
        self._beyond_rows += ahead_rows - peer.ahead_rows
        self._now_s = now_s
        peer.queue_rows, peer.ahead_rows, peer.told_s = queue_rows, ahead_rows, now_s

    def _late(self, entry: Entry, now_s: float) -> DeadlineExceeded | None:
        """Why the request cannot be answered in time; None if it can, or there is nothing to judge by."""
        urgent, arrivals = entry.request.priority == INTERACTIVE, self._pace.arrivals
        busy_s = [peer.busy_s(arrivals, urgent, now_s) for peer in self.peers.values() if peer.usable]
        if not busy_s or not self._pace.known(now_s):
            return None
        ahead = self.waiting_rows - self._patient_rows if urgent else self.waiting_rows
        needs_s = arrivals.needs_s(busy_s, ahead, entry.rows)
        return too_late(entry.deadline_s - now_s, needs_s) if entry.deadline_s < now_s + needs_s else None

    def _deserted(self) -> bool:
        return all(peer.draining for peer in self.peers.values())

    def _dispatch(self, now_s: float) -> None:
        while self._suspects:
            if not self._send_suspect(now_s):
                break
        while self._lanes:
            peer = least_loaded(self.peers.values(), self.settings.in_flight)
            if peer is None or self._better_held(peer):
                return
            if not (taken := self._lanes.take(self.settings.batch_rows, self.settings.batch_bytes)):
                return
            if taken[0].request.priority != INTERACTIVE:
                self._patient_rows -= sum([entry.rows for entry in taken])
            self._send(peer, taken, now_s)

    def _better_held(self, peer: Peer) -> bool:
        most = self.settings.batch_rows
        ahead_s = self.settings.run_s(min(peer.outstanding_rows, most))
        return better_held(peer.outstanding_rows, self.waiting_rows, most, ahead_s)

    def _send_suspect(self, now_s: float) -> bool:
        """Give the first suspect to a replica that has nothing else, or keep one free for it."""
        while self._suspects and self._suspects[0].state != WAITING:
            self._suspects.popleft()
        if not self._suspects:
            return False
        usable = [peer for peer in self.peers.values() if peer.usable]
        usable = [peer for peer in usable if peer.node != self._suspects[0].lost_on] or usable
        idle = next((peer for peer in usable if not peer.calls), None)
        if idle is not None:
            self._send(idle, [self._suspects.popleft()], now_s)
            idle.exclusive = True
            return True
        if usable and not any(peer.exclusive for peer in usable):
            min(usable, key=lambda peer: peer.outstanding_rows).exclusive = True
        return False

    def _send(self, peer: Peer, entries: list[Entry], now_s: float) -> None:
        self._last_call = call_id = self._last_call + 1
        rows = size = 0
        call = Call(call_id, peer, entries, 0)
        for entry in entries:
            entry.state = SENT
            entry.call = call
            entry.attempts += 1
            rows += entry.rows
            size += entry.size_bytes
        call.rows = rows
        self._beyond_rows += rows
        self.waiting_rows -= rows
        self.waiting_bytes -= size
        self._waiting -= len(entries)
        if not peer.calls:
            peer.owes_since_s = now_s
            self._watch_s = min(self._watch_s, now_s + BUSY_PING_S)
        peer.calls[call_id] = call
        peer.outstanding_rows += rows
        self._actions.append(Send(peer.key, call_id, [entry.request for entry in entries]))

    def _settle(self, entry: Entry, outcome: Outcome) -> None:
        """Answer a live entry, wherever it is."""
        waited = entry.state == WAITING
        entry.state = DONE
        if waited:
            self.waiting_rows -= entry.rows
            self.waiting_bytes -= entry.size_bytes
            self._waiting -= 1
            request, entry.request = entry.request, NO_REQUEST  # it may lie in its lane for a while without its tensors
            if entry.attempts == 0:  # else it is a suspect, and in no lane
                if request.priority != INTERACTIVE:
                    self._patient_rows -= entry.rows
                self._lanes.answered(self._waiting)
        entry.call = None
        self.answers.append((entry.reply, outcome))

    def _suspect(self, call: Call, verdict: str) -> None:
        """A call will not be answered by its replica: its requests get another chance, or the verdict."""
        for entry in call.entries:
            if entry.state != SENT or entry.call is not call:
                continue
            entry.call = None
            entry.lost_on = call.peer.node
            if entry.attempts >= MAX_ATTEMPTS:
                self._settle(entry, EngineFailed(verdict))
                continue
            entry.state = WAITING
            self.waiting_rows += entry.rows
            self.waiting_bytes += entry.size_bytes
            self._waiting += 1
            self._suspects.append(entry)

    def _expire(self, now_s: float) -> None:
        """Answer what is past its deadline, and find the next one."""
        earliest = inf
        live = self._all_waiting()
        for peer in self.peers.values():
            for call in peer.calls.values():
                live += [entry for entry in call.entries if entry.state == SENT]
        for entry in live:
            if entry.deadline_s <= now_s:
                where = "while it waited for a replica" if entry.state == WAITING else "before its replica answered"
                self._settle(entry, DeadlineExceeded(f"the deadline passed {where}"))
            else:
                earliest = min(earliest, entry.deadline_s)
        self._deadline_s = earliest

    def _all_waiting(self) -> list[Entry]:
        return self._lanes.waiting() + [entry for entry in self._suspects if entry.state == WAITING]

    def _watch(self, now_s: float) -> None:
        """Ping, set silent replicas aside, and take from them what others can do."""
        again_s = inf
        stalled = now_s - self._watch_s > SILENCE_S / 2  # this process slept: what was sent to it lies unread
        for peer in self.peers.values():
            if stalled:
                peer.heard_s = now_s
            ping_s = BUSY_PING_S if peer.calls else IDLE_PING_S
            if now_s - peer.pinged_s >= ping_s:
                peer.pinged_s = now_s
                self._actions.append(Ping(peer.key))
            again_s = min(again_s, peer.pinged_s + ping_s)
            if peer.calls and not peer.silent:
                quiet_since_s = max(peer.heard_s, peer.owes_since_s)
                peer.silent = now_s - quiet_since_s > self._patience_s(peer)
        self._watch_s = again_s
        if self.usable:
            for peer in self.peers.values():
                if peer.silent:
                    self._take_back(peer)

    def _patience_s(self, peer: Peer) -> float:
        return max(SILENCE_S, 3 * self.settings.run_s(peer.outstanding_rows + peer.queue_rows))

    def _take_back(self, peer: Peer) -> None:
        """Retry a silent replica's unanswered requests elsewhere; those on their last attempt stay with it."""
        for call in list(peer.calls.values()):
            if all(entry.attempts < MAX_ATTEMPTS for entry in call.entries if entry.state == SENT):
                del peer.calls[call.id]
                peer.outstanding_rows -= call.rows
                self._beyond_rows -= call.rows
                self._suspect(call, "")
        peer.exclusive = False
