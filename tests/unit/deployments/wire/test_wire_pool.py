from __future__ import annotations

from collections.abc import Callable
from math import inf

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pytest import approx

from cluster.errors import Cancelled, DeadlineExceeded, EngineFailed, Overloaded, ServingError
from cluster.policy.arrival import FORGET_S
from deployments.call import BATCH, INTERACTIVE, TensorAnswer, TensorRequest
from deployments.wire.calls import SENT, WAITING, Action, Entry, Ping, PoolSettings, SayGoodbye, Send, Want, Withdraw
from deployments.wire.lanes import CLASS_TURN
from deployments.wire.pool import SILENCE_S, Pool

SETTINGS = PoolSettings(
    batch_rows=4, batch_bytes=100, in_flight=2, max_waiting_rows=20, max_waiting_bytes=1000, run_s=lambda rows: 0.0
)


class Caller:
    """Submits to a pool and remembers what came back, by tag."""

    def __init__(self, settings: PoolSettings = SETTINGS) -> None:
        self.pool = Pool(settings)
        self.replies: dict[str, list[TensorAnswer | ServingError]] = {}
        self.entries: dict[str, Entry] = {}

    def withdraw(self, entry: Entry) -> None:
        self.pool.cancel(entry)

    def submit(
        self,
        tag: str,
        rows: int = 1,
        deadline_s: float = 1000.0,
        priority: int = INTERACTIVE,
        shape: int = 0,
        size: int = 1,
    ) -> Entry:
        got = self.replies.setdefault(tag, [])
        request = TensorRequest(rows, (), (tag.encode(),), deadline_s, priority, tag)
        entry = self.entries[tag] = Entry(self, request, got.append)
        self.pool.submit(entry, (priority, shape), size)
        return entry

    def step(self, now_s: float = 0.0) -> list[Action]:
        actions = self.pool.step(now_s)
        self.deliver()
        return actions

    def sends(self, now_s: float = 0.0) -> list[tuple[int, int, list[str]]]:
        return [(a.peer, a.call_id, [r.id for r in a.requests]) for a in self.step(now_s) if isinstance(a, Send)]

    def answer(self, peer: int, call_id: int, tags: list[str], now_s: float = 0.0, queue_rows: int = 0) -> None:
        self.pool.result(peer, call_id, queue_rows, now_s, answering(tags))
        self.deliver()

    def deliver(self) -> None:
        answers, self.pool.answers = self.pool.answers, []
        for reply, outcome in answers:
            reply(outcome)

    def outcome(self, tag: str) -> TensorAnswer | ServingError:
        (outcome,) = self.replies[tag]
        return outcome


def answering(tags: list[str]) -> Callable[[list[int]], list[TensorAnswer | ServingError]]:
    return lambda rows: [TensorAnswer(((n,),), (tag.encode(),)) for n, tag in zip(rows, tags, strict=True)]


def connected(*peers: int, settings: PoolSettings = SETTINGS) -> Caller:
    caller = Caller(settings)
    for peer in peers:
        caller.pool.connected(peer, 0, 0.0)
    return caller


def test_an_idle_pool_sends_at_once_and_requests_of_one_turn_travel_together():
    caller = connected(1)
    caller.submit("a")
    caller.submit("b", rows=2)
    assert caller.sends() == [(1, 1, ["a", "b"])]


def test_what_arrives_while_every_slot_is_taken_goes_with_the_next_micro_batch():
    caller = connected(1)
    caller.submit("a")
    assert caller.sends() == [(1, 1, ["a"])]
    caller.submit("b")
    assert caller.sends() == [(1, 2, ["b"])]
    caller.submit("c")
    caller.submit("d")
    assert caller.sends() == []
    caller.answer(1, 1, ["a"])
    assert caller.sends() == [(1, 3, ["c", "d"])]
    assert caller.outcome("a").data == (b"a",)


def test_a_replica_counts_as_having_answered_from_its_first_answer_on_a_connection_on():
    caller = connected(1, 2)
    caller.submit("a")
    assert caller.sends() == [(1, 1, ["a"])] and caller.pool.answered == 0
    caller.answer(1, 1, ["a"], now_s=1.0)
    assert caller.pool.answered == 1
    caller.pool.lost(1)
    caller.pool.connected(3, 0, 2.0)
    assert (caller.pool.usable, caller.pool.answered) == (2, 0)


def test_a_replica_with_long_work_is_sent_a_full_micro_batch_or_waits_until_it_is_free():
    long = PoolSettings(4, 100, 2, 20, 1000, run_s=lambda rows: 0.05)
    caller = connected(1, settings=long)
    caller.submit("a")
    assert caller.sends() == [(1, 1, ["a"])]  # idle: at once
    caller.submit("b")
    caller.submit("c")
    assert caller.sends() == []  # two rows now would run as two rows then
    caller.submit("d", rows=2)
    assert caller.sends() == [(1, 2, ["b", "c", "d"])]  # full
    caller.submit("e")
    assert caller.sends() == []
    caller.answer(1, 1, ["a"])
    assert caller.sends() == []  # the full one runs
    caller.answer(1, 2, ["b", "c", "d"])
    assert caller.sends() == [(1, 3, ["e"])]


def test_what_is_held_for_a_busy_replica_goes_to_an_idle_one():
    long = PoolSettings(4, 100, 2, 20, 1000, run_s=lambda rows: 0.05)
    caller = connected(1, settings=long)
    caller.submit("a")
    caller.step()
    caller.submit("b")
    assert caller.sends() == []
    caller.pool.connected(2, 0, 0.0)
    assert caller.sends() == [(2, 2, ["b"])]


SLOW = PoolSettings(4, 10_000, 2, 100, 10_000, run_s=lambda rows: 0.1)  # seconds a batch, whatever its rows


def confirm(caller: Caller, took_s: float = 0.1, now_s: float = 0.0) -> None:
    """Let an idle version answer one request, which says how long its batches take."""
    caller.submit("first")
    ((peer, call_id, _),) = caller.sends(now_s)
    answer = TensorAnswer(((1,),), (b"first",), compute_s=took_s, batch_rows=1)
    caller.pool.result(peer, call_id, 0, now_s, lambda rows: [answer])
    caller.deliver()


def confirmed(*peers: int) -> Caller:
    caller = connected(*peers, settings=SLOW)
    confirm(caller)
    return caller


def refused(caller: Caller, tag: str) -> bool:
    caller.step()
    return any(isinstance(got, DeadlineExceeded) for got in caller.replies[tag])


def test_what_cannot_be_answered_in_time_is_refused_when_it_comes():
    caller = confirmed(1)
    for i in range(20):
        caller.submit(f"before {i}")
    caller.step()
    caller.submit("late", deadline_s=0.3)
    assert refused(caller, "late")
    assert caller.outcome("late").message == "deadline: 300 ms are left, the answer is expected to take 600 ms"
    caller.submit("in time", deadline_s=0.7)
    assert not refused(caller, "in time")


def test_an_idle_version_refuses_only_what_takes_longer_than_its_deadline():
    caller = confirmed(1)
    caller.submit("possible", deadline_s=0.11)
    assert not refused(caller, "possible")
    caller = confirmed(1)
    caller.submit("impossible", deadline_s=0.09)
    assert refused(caller, "impossible")


def test_nothing_is_refused_for_its_time_while_there_is_no_replica():
    caller = Caller(SLOW)
    for i in range(20):
        caller.submit(f"before {i}")
    caller.submit("asleep", deadline_s=0.05)
    assert not refused(caller, "asleep")


def test_what_replicas_told_counts_and_ages():
    caller = confirmed(1)
    caller.pool.heard(1, 8, 0.0, ahead_rows=8)
    caller.submit("late", deadline_s=0.25)
    assert refused(caller, "late")
    caller.step(0.2)  # it has done its queue since
    caller.submit("later", deadline_s=0.45)
    assert not refused(caller, "later")


def test_another_replica_makes_it_possible():
    caller = confirmed(1, 2)
    caller.pool.heard(1, 8, 0.0, ahead_rows=8)
    caller.submit("possible", deadline_s=0.15)
    assert not refused(caller, "possible")
    caller.pool.draining(2)
    caller.submit("late", deadline_s=0.15)
    assert refused(caller, "late")


def test_less_urgent_work_that_waits_makes_no_urgent_request_late():
    caller = confirmed(1)
    for i in range(20):
        caller.submit(f"before {i}", priority=BATCH)
    caller.step()
    caller.submit("urgent", deadline_s=0.35)
    caller.submit("patient", deadline_s=0.35, priority=BATCH)
    assert not refused(caller, "urgent") and refused(caller, "patient")


def test_what_is_in_flight_counts_for_no_longer_than_it_takes():
    caller = confirmed(1)
    for i in range(8):
        caller.submit(f"before {i}")
    assert len(caller.sends(0.0)) == 2
    caller.submit("late", deadline_s=0.25)
    assert refused(caller, "late")
    caller.step(0.2)
    caller.submit("possible", deadline_s=0.45)
    assert not refused(caller, "possible")


def test_replicas_that_are_faster_than_was_measured_are_not_judged_by_what_was_measured():
    caller = connected(1, settings=SLOW)
    caller.submit("before any answer", deadline_s=0.05)
    assert not refused(caller, "before any answer")
    caller = connected(1, settings=SLOW)
    confirm(caller, took_s=0.01)
    caller.submit("possible", deadline_s=0.02)
    caller.submit("impossible", deadline_s=0.005)
    assert not refused(caller, "possible") and refused(caller, "impossible")


def test_a_new_replica_may_be_faster_and_what_no_answer_confirms_is_forgotten():
    caller = confirmed(1)
    caller.pool.connected(2, 0, 0.0)
    caller.submit("possible", deadline_s=0.05)
    assert not refused(caller, "possible")
    caller = confirmed(1)
    caller.step(FORGET_S - 0.5)
    caller.submit("late", deadline_s=FORGET_S - 0.45)
    assert refused(caller, "late")
    caller.step(FORGET_S + 0.5)
    caller.submit("later", deadline_s=FORGET_S + 0.55)
    assert not refused(caller, "later")


def test_a_micro_batch_has_at_most_the_configured_rows_and_bytes():
    caller = connected(1)
    for tag in "abc":
        caller.submit(tag, rows=2)
    assert caller.sends() == [(1, 1, ["a", "b"]), (1, 2, ["c"])]
    caller = connected(1)
    caller.submit("a", size=60)
    caller.submit("b", size=60)
    assert caller.sends() == [(1, 1, ["a"]), (1, 2, ["b"])]


def test_a_request_larger_than_a_micro_batch_travels_alone():
    caller = connected(1)
    caller.submit("a", rows=9)
    caller.submit("b")
    assert caller.sends() == [(1, 1, ["a"]), (1, 2, ["b"])]


def test_requests_of_other_shapes_do_not_share_a_micro_batch_and_the_oldest_goes_first():
    caller = connected(1)
    caller.submit("a", shape=1)
    caller.submit("b", shape=2)
    caller.submit("c", shape=1)
    assert caller.sends() == [(1, 1, ["a", "c"]), (1, 2, ["b"])]


def test_a_shape_whose_oldest_request_went_away_loses_its_place():
    caller = connected(1)
    gone = caller.submit("a", shape=1)
    caller.submit("b", shape=2)
    caller.submit("c", shape=1)
    gone.cancel()
    assert caller.sends() == [(1, 1, ["b"]), (1, 2, ["c"])]


def test_the_replica_with_the_fewest_outstanding_rows_is_chosen():
    caller = Caller()
    caller.pool.connected(1, 5, 0.0)
    caller.pool.connected(2, 0, 0.0)
    caller.submit("a", rows=4)
    caller.submit("b", rows=4)
    caller.submit("c", rows=4)
    assert [peer for peer, _, _ in caller.sends()] == [2, 2, 1]


def test_what_a_replica_last_said_about_its_queue_counts():
    caller = connected(1, 2)
    caller.pool.heard(1, 7, 0.0)
    caller.submit("a")
    assert caller.sends() == [(2, 1, ["a"])]
    caller.pool.heard(2, 9, 0.0)
    caller.submit("b")
    assert caller.sends() == [(1, 2, ["b"])]


def test_a_full_queue_refuses_in_rows_and_in_bytes():
    caller = Caller()
    caller.submit("a", rows=20)
    caller.submit("b")
    caller.deliver()
    assert isinstance(caller.outcome("b"), Overloaded)
    assert caller.replies["a"] == []
    caller = Caller()
    caller.submit("a", size=999)
    caller.submit("b", size=2)
    caller.deliver()
    assert isinstance(caller.outcome("b"), Overloaded)


def test_a_waiting_request_expires_at_its_deadline_and_is_never_sent():
    caller = Caller()
    caller.submit("a", deadline_s=5.0)
    caller.step(0.0)
    assert caller.pool.wake_s() <= 5.0
    assert caller.sends(4.9) == []
    caller.step(5.0)
    assert isinstance(caller.outcome("a"), DeadlineExceeded)
    caller.pool.connected(1, 0, 5.0)
    assert caller.sends(5.0) == []
    assert caller.pool.waiting_rows == 0


def test_an_answer_after_the_deadline_is_dropped():
    caller = connected(1)
    caller.submit("a", deadline_s=0.2)
    caller.sends()
    caller.step(0.2)
    caller.answer(1, 1, ["a"], now_s=0.3)
    assert isinstance(caller.outcome("a"), DeadlineExceeded)


def test_a_request_cancelled_in_flight_is_withdrawn_by_its_place_in_the_micro_batch():
    caller = connected(1)
    caller.submit("a")
    ticket = caller.submit("b")
    caller.sends()
    ticket.cancel()
    ticket.cancel()
    assert caller.step() == [Withdraw(1, 1, 1)]
    caller.answer(1, 1, ["a", "b"])
    assert isinstance(caller.outcome("b"), Cancelled)
    assert isinstance(caller.outcome("a"), TensorAnswer)


def test_many_cancelled_requests_leave_nothing_behind():
    caller = Caller()
    for i in range(5000):
        caller.submit(str(i), shape=i % 3).cancel()
    caller.deliver()
    assert len(caller.pool._lanes.waiting()) == 0
    assert sum(len(lane.entries) for lane in caller.pool._lanes._lanes.values()) < 200


def test_requests_of_a_lost_replica_are_retried_one_by_one_with_nothing_else_there():
    caller = connected(1)
    for tag in "ab":
        caller.submit(tag)
    caller.sends()
    caller.pool.lost(1)
    caller.pool.connected(2, 0, 1.0)
    caller.submit("c")
    assert caller.sends(1.0) == [(2, 2, ["a"])]
    caller.answer(2, 2, ["a"], now_s=1.1)
    assert caller.sends(1.1) == [(2, 3, ["b"])]
    caller.answer(2, 3, ["b"], now_s=1.2)
    assert caller.sends(1.2) == [(2, 4, ["c"])]


def test_a_request_that_kills_two_replicas_fails_alone():
    caller = connected(1)
    for tag in ("poison", "a", "b"):
        caller.submit(tag)
    caller.sends()
    caller.pool.lost(1)
    caller.pool.connected(2, 0, 1.0)
    assert caller.sends(1.0) == [(2, 2, ["poison"])]
    caller.pool.lost(2)
    caller.deliver()
    assert isinstance(caller.outcome("poison"), EngineFailed)
    caller.pool.connected(3, 0, 2.0)
    ((_, call, tags),) = caller.sends(2.0)
    caller.answer(3, call, tags, now_s=2.0)
    ((_, call, tags),) = caller.sends(2.0)
    caller.answer(3, call, tags, now_s=2.0)
    assert isinstance(caller.outcome("a"), TensorAnswer)
    assert isinstance(caller.outcome("b"), TensorAnswer)


def test_a_busy_replica_is_kept_free_for_a_suspect_instead_of_starving_it():
    caller = connected(1, 2)
    caller.submit("x")
    caller.submit("a", shape=1)
    assert [(p, t) for p, _, t in caller.sends()] == [(1, ["x"]), (2, ["a"])]
    caller.pool.lost(1)
    caller.submit("b", shape=1)
    assert caller.sends() == []
    caller.answer(2, 2, ["a"])
    assert caller.sends() == [(2, 3, ["x"])]
    assert caller.sends() == []
    caller.answer(2, 3, ["x"])
    assert caller.sends() == [(2, 4, ["b"])]


def test_what_a_replica_left_unanswered_goes_to_another_node_because_its_own_may_be_dying():
    caller = Caller()
    for peer, node in ((1, "a"), (2, "a"), (3, "b")):
        caller.pool.connected(peer, 0, 0.0, node=node)
    for tag in ("x", "y", "z"):
        caller.submit(tag, rows=4)
    assert caller.sends() == [(1, 1, ["x"]), (2, 2, ["y"]), (3, 3, ["z"])]
    caller.answer(2, 2, ["y"])
    caller.pool.lost(1)
    assert caller.sends() == []  # though 2 is idle
    caller.pool.lost(2)
    caller.answer(3, 3, ["z"])
    assert caller.sends() == [(3, 4, ["x"])]
    caller.answer(3, 4, ["x"])
    assert caller.outcome("x").data == (b"x",)


def test_without_another_node_the_next_replica_gets_what_one_left_unanswered():
    caller = Caller()
    for peer in (1, 2):
        caller.pool.connected(peer, 0, 0.0, node="a")
    caller.submit("x")
    assert caller.sends() == [(1, 1, ["x"])]
    caller.pool.lost(1)
    assert caller.sends() == [(2, 2, ["x"])]


def test_a_silent_replica_is_set_aside_and_its_work_done_elsewhere():
    caller = connected(1)
    caller.submit("a")
    assert caller.sends() == [(1, 1, ["a"])]
    caller.pool.connected(2, 0, 0.0)
    now_s, sent = 0.0, []
    while now_s < SILENCE_S + 0.5:
        now_s += 0.1
        caller.pool.heard(2, 0, now_s)
        sent += caller.sends(now_s)
    assert sent == [(2, 2, ["a"])]
    assert caller.pool.usable == 1
    caller.answer(2, 2, ["a"], now_s=now_s)
    caller.answer(1, 1, ["late"], now_s=now_s)
    assert caller.outcome("a").data == (b"a",)
    assert caller.pool.usable == 2


def test_a_silent_replica_without_an_alternative_keeps_its_work():
    caller = connected(1)
    caller.submit("a")
    caller.sends()
    for tenth in range(1, 31):
        assert caller.sends(tenth / 10) == []
    assert caller.pool.usable == 0
    caller.answer(1, 1, ["a"], now_s=3.1)
    assert isinstance(caller.outcome("a"), TensorAnswer)
    assert caller.pool.usable == 1


def test_patience_grows_with_what_the_batch_is_predicted_to_take():
    slow = PoolSettings(4, 100, 2, 20, 1000, run_s=lambda rows: 2.0 * rows)
    caller = connected(1, settings=slow)
    caller.submit("a")
    caller.sends()
    for tenth in range(1, 59):
        caller.step(tenth / 10)
    assert caller.pool.usable == 1
    for tenth in range(59, 70):
        caller.step(tenth / 10)
    assert caller.pool.usable == 0


def test_a_process_that_slept_does_not_blame_its_replicas():
    caller = connected(1)
    caller.submit("a")
    caller.sends()
    caller.step(30.0)
    assert caller.pool.usable == 1


def test_a_busy_replica_is_pinged_and_an_idle_one_less_often():
    caller = connected(1)
    pings = [s for s in range(1, 51) if Ping(1) in caller.step(s / 10)]
    assert 4 <= len(pings) <= 6
    caller.submit("a")
    caller.step(5.0)
    pings = [s for s in range(51, 61) if Ping(1) in caller.step(s / 10)]
    assert len(pings) >= 2


def test_a_draining_replica_gets_goodbye_once_and_nothing_more_but_its_answers_count():
    caller = connected(1)
    caller.submit("a")
    caller.sends()
    caller.pool.draining(1)
    caller.pool.draining(1)
    caller.submit("b")
    actions = caller.step()
    assert [a for a in actions if isinstance(a, SayGoodbye)] == [SayGoodbye(1)]
    assert not [a for a in actions if isinstance(a, Send)]
    caller.answer(1, 1, ["a"])
    assert isinstance(caller.outcome("a"), TensorAnswer)


def test_waiting_without_a_replica_asks_for_one_again_and_again_but_not_at_every_step():
    caller = Caller()
    caller.submit("a")
    wants = [s for s in range(30) if Want() in caller.step(s / 10)]
    assert wants == [0, 10, 20]
    assert caller.pool.wake_s() == approx(3.0)
    caller.pool.connected(1, 0, 3.0)
    assert Want() not in caller.step(3.0)


def test_the_batch_class_gets_its_turn_while_the_urgent_one_always_waits():
    caller = connected(1, settings=PoolSettings(1, 100, 1, 1000, 100_000, run_s=lambda rows: 0.0))
    for i in range(40):
        caller.submit(f"i{i}")
        caller.submit(f"b{i}", priority=BATCH)
    order = []
    for _ in range(2 * CLASS_TURN):
        ((peer, call, tags),) = caller.sends()
        order += tags
        caller.answer(peer, call, tags)
    assert [tag[0] for tag in order].count("b") == 2
    assert [tag for tag in order if tag[0] == "b"] == ["b0", "b1"]
    assert [tag for tag in order if tag[0] == "i"] == [f"i{n}" for n in range(2 * CLASS_TURN - 2)]


def test_a_result_that_cannot_be_split_changes_nothing():
    caller = connected(1)
    caller.submit("a")
    caller.sends()

    def broken(rows: list[int]) -> list[TensorAnswer | ServingError]:
        raise ValueError("not an answer")

    try:
        caller.pool.result(1, 1, 0, 0.0, broken)
    except ValueError:
        pass
    caller.pool.lost(1)
    caller.pool.connected(2, 0, 0.0)
    assert caller.sends() == [(2, 2, ["a"])]


ROWS = st.integers(0, 10)


class PoolMachine(RuleBasedStateMachine):
    """Everything that can happen, in any order, against replicas that compute or die."""

    def __init__(self) -> None:
        super().__init__()
        self.caller = Caller()
        self.pool = self.caller.pool
        self.now_s = 0.0
        self.tags = 0
        self.peers = 0
        self.open: dict[int, dict[int, list[TensorRequest]]] = {}  # peer -> call -> what it was sent
        self.retired: list[tuple[int, int, list[TensorRequest]]] = []
        self.goodbyes: set[int] = set()

    def carry_out(self) -> None:
        for action in self.caller.step(self.now_s):
            if isinstance(action, Send):
                assert action.peer not in self.goodbyes
                calls = self.open[action.peer]
                rows = sum(r.rows for r in action.requests)
                assert rows <= SETTINGS.batch_rows or len(action.requests) == 1
                assert len({r.priority for r in action.requests}) == 1
                suspects = [r for r in action.requests if self.caller.entries[r.id].attempts > 1]
                company = [r.id for requests in calls.values() for r in requests if self.waits_for(r.id, action.peer)]
                assert not suspects or (len(action.requests) == 1 and not company)
                calls[action.call_id] = list(action.requests)
            elif isinstance(action, SayGoodbye):
                assert action.peer not in self.goodbyes
                self.goodbyes.add(action.peer)

    def waits_for(self, tag: str, peer: int) -> bool:
        """Whether a request is still to be answered by `peer`; it may have expired there, or have gone elsewhere."""
        entry = self.caller.entries[tag]
        return entry.state == SENT and entry.call is not None and entry.call.peer.key == peer

    @rule(
        rows=st.integers(1, 6),
        left_s=st.sampled_from([0.5, 2.0, 100.0]),
        priority=st.sampled_from([INTERACTIVE, BATCH]),
        shape=st.integers(0, 2),
        size=st.integers(1, 120),
    )
    def submit(self, rows: int, left_s: float, priority: int, shape: int, size: int) -> None:
        self.tags += 1
        self.caller.submit(f"r{self.tags}", rows, self.now_s + left_s, priority, shape, size)

    @rule(pick=st.integers(0, 1000))
    def cancel(self, pick: int) -> None:
        if self.tags:
            self.caller.entries[f"r{pick % self.tags + 1}"].cancel()

    @precondition(lambda self: len(self.open) < 4)
    @rule(queue_rows=st.integers(0, 10))
    def connect(self, queue_rows: int) -> None:
        self.peers += 1
        self.open[self.peers] = {}
        self.pool.connected(self.peers, queue_rows, self.now_s, ahead_rows=queue_rows // 2)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(sorted(self.open)))
        self.retired += [(peer, call, requests) for call, requests in self.open.pop(peer).items()]
        self.pool.lost(peer)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        self.pool.draining(data.draw(st.sampled_from(sorted(self.open))))

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data(), queue_rows=st.integers(0, 10))
    def answer(self, data: st.DataObject, queue_rows: int) -> None:
        peer = data.draw(st.sampled_from(sorted(p for p, calls in self.open.items() if calls)))
        call = data.draw(st.sampled_from(sorted(self.open[peer])))
        requests = self.open[peer].pop(call)
        bad = data.draw(st.sets(st.integers(0, len(requests) - 1)))
        self.reply(peer, call, requests, queue_rows, bad)

    @precondition(lambda self: self.retired)
    @rule(data=st.data())
    def answer_from_the_grave(self, data: st.DataObject) -> None:
        peer, call, requests = data.draw(st.sampled_from(self.retired))
        self.reply(peer, call, requests, 0, set())

    def reply(self, peer: int, call: int, requests: list[TensorRequest], queue_rows: int, bad: set[int]) -> None:
        def split(rows: list[int]) -> list[TensorAnswer | ServingError]:
            assert rows == [r.rows for r in requests]
            return [
                EngineFailed(r.id) if i in bad else TensorAnswer(((r.rows,),), (r.id.encode(),))
                for i, r in enumerate(requests)
            ]

        self.pool.result(peer, call, queue_rows, self.now_s, split)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def speak(self, data: st.DataObject) -> None:
        self.pool.heard(data.draw(st.sampled_from(sorted(self.open))), 0, self.now_s, ahead_rows=data.draw(ROWS))

    @rule(seconds=st.sampled_from([0.01, 0.3, 0.4, 1.0]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.carry_out()

    @rule()
    def step(self) -> None:
        self.carry_out()

    @invariant()
    def the_books_balance(self) -> None:
        entries = self.caller.entries.values()
        waiting = [e for e in entries if e.state == WAITING]
        assert self.pool.waiting_rows == sum(e.rows for e in waiting)
        assert self.pool._patient_rows == sum(
            e.rows for e in waiting if e.attempts == 0 and e.request.priority == BATCH
        )
        told = sum(peer.ahead_rows for peer in self.pool.peers.values())
        assert self.pool._beyond_rows == self.pool.in_flight_rows + told
        assert self.pool.waiting_bytes == sum(e.size_bytes for e in waiting)
        assert {e.seq for e in self.pool._all_waiting()} == {e.seq for e in waiting}
        for peer in self.pool.peers.values():
            assert len(peer.calls) <= SETTINGS.in_flight
            assert peer.outstanding_rows == sum(c.rows for c in peer.calls.values())
        for entry in entries:
            if entry.state == SENT:
                assert entry.call is not None and entry in entry.call.entries
                assert entry.call.peer.calls[entry.call.id] is entry.call

    @invariant()
    def nobody_is_answered_twice_or_with_another_ones_rows(self) -> None:
        self.caller.deliver()
        for tag, got in self.caller.replies.items():
            assert len(got) <= 1
            if got and isinstance(got[0], TensorAnswer):
                assert got[0].data == (tag.encode(),)
                assert got[0].shapes == ((self.caller.entries[tag].rows,),)

    def teardown(self) -> None:
        for peer in list(self.open):
            self.open.pop(peer)
            self.pool.lost(peer)
        self.open[-1] = {}
        self.pool.connected(-1, 0, self.now_s)
        for _ in range(10 * self.tags + 10):
            self.carry_out()
            for call, requests in list(self.open[-1].items()):
                del self.open[-1][call]
                self.reply(-1, call, requests, 0, set())
        self.caller.deliver()
        assert all(len(got) == 1 for got in self.caller.replies.values())
        assert (self.pool.waiting_rows, self.pool.waiting_bytes, self.pool.in_flight_rows) == (0, 0, 0)
        assert self.pool._lanes.waiting() == []
        assert self.pool.wake_s() < inf


TestEveryRequestIsAnsweredOnce = PoolMachine.TestCase
TestEveryRequestIsAnsweredOnce.settings = hypothesis_settings(max_examples=120, stateful_step_count=40, deadline=None)
