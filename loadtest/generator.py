"""One load generator process: a Locust user that follows the plan, and how generators start together.

Locust's own users wait for an answer before they send again, so a server that stalls is asked less often while it
stalls, and the stall hardly shows. Here one user per process sends every arrival at its due time from a pool of
greenlets and never waits for any of them; latency counts from the due time. What the pool cannot take is dropped and
counted.

Starting together, also across machines: every process prepares its plan and says so; the master, once all have,
tells each which part of the arrivals is its own and how soon time 0 is.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any, ClassVar

import gevent
from gevent.event import AsyncResult
from gevent.pool import Pool
from locust import LoadTestShape, User
from locust.env import Environment
from locust.exception import CatchResponseError, StopUser
from locust.runners import STATE_CLEANUP, STATE_STOPPED, STATE_STOPPING, LocalRunner, MasterRunner, WorkerRunner

from loadtest.alarm import alarm
from loadtest.calls import Call
from loadtest.connections import Connections, NoAnswer
from loadtest.plan import Plan
from loadtest.samples import Outcome, Recorder, outcome_of
from loadtest.schedule import thin

log = logging.getLogger(__name__)

READY, START, DONE, FAILED = "prism_ready", "prism_start", "prism_done", "prism_failed"
LEAD_S = 0.5  # between the order to start and time 0
MAX_LATE_S = 2.0  # later than this an arrival is dropped: a generator that cannot keep up should not go on for long


@dataclass(frozen=True, slots=True)
class Share:
    """Which arrivals this process sends (index, index + of, ...), and its monotonic clock at time 0."""

    index: int
    of: int
    start_s: float


@dataclass(slots=True)
class Session:
    """One run, as one process sees it."""

    plan: Plan
    folder: Path | None  # where samples and progress are written; None keeps them in Locust's own statistics only
    share: AsyncResult = field(default_factory=AsyncResult)
    recorder: Recorder = field(default_factory=Recorder)
    sent: int = 0
    open: dict[int, tuple[float, float, int]] = field(default_factory=dict)  # due_s, sent_s and call, by `sent`
    epoch_s: float = 0.0  # wall clock at time 0
    cpu: list[float] = field(default_factory=list)
    started_users: int = 0
    finished_users: int = 0
    finished: bool = False

    def label(self, call: Call, version: str) -> str:
        """How a version is reported: by number, or as model:version where several models take part."""
        several = len({call.name.partition(":")[0].partition("@")[0] for call in self.plan.calls}) > 1
        return f"{call.name.partition(':')[0].partition('@')[0]}:{version}" if several and version else version

    def close(self) -> None:
        """Write the samples, once. Requests that are still open have no answer."""
        if self.finished:
            return
        self.finished = True
        for due_s, sent_s, call in self.open.values():
            self.recorder.add(due_s, sent_s, nan, Outcome.UNANSWERED, "", call)
        if self.folder is not None and self.share.ready():
            about = {"epoch_s": self.epoch_s, "cpu": self.cpu, "index": self.share.get().index}
            self.recorder.write(self.folder / f"samples-{about['index']}.npz", about)

    def observe(self) -> None:
        """Write counters and this process's CPU share every second, until the run is over."""
        share: Share = self.share.get()
        self.epoch_s = time.time() + share.start_s - time.perf_counter()
        gevent.sleep(max(share.start_s - time.perf_counter(), 0))
        stream = (self.folder / f"progress-{share.index}.jsonl").open("w") if self.folder else None
        cpu_s, at_s = time.process_time(), time.perf_counter()
        try:
            while not self.finished:
                gevent.sleep(1.0)
                cpu, now_s = time.process_time(), time.perf_counter()
                self.cpu.append((cpu - cpu_s) / (now_s - at_s))
                cpu_s, at_s = cpu, now_s
                if stream:
                    line = {
                        "t_s": now_s - share.start_s,
                        "recorded": len(self.recorder),
                        "ok": self.recorder.count(Outcome.OK),
                        "dropped": self.recorder.count(Outcome.DROPPED),
                        "in_flight": len(self.open),
                        "cpu": self.cpu[-1],
                    }
                    print(json.dumps(line), file=stream, flush=True)
        finally:
            if stream:
                stream.close()


class PlanUser(User):  # type: ignore[misc]
    """Sends what the plan says. Open loop: one such user per process. Closed loop: `plan.users` over all processes.

    It has connections of its own instead of Locust's `FastHttpUser`, whose requests cost several times the CPU: a
    generator that is busy measures itself.
    """

    abstract = True
    session: Session | None = None  # of the run in progress

    def on_start(self) -> None:
        session = self.session
        if session is None:
            raise StopUser  # the plan could not be made, and that was logged
        plan = session.plan
        self._connections = Connections(plan.host, plan.timeout_s)
        self._heads = [self._connections.head(call) for call in plan.calls]
        try:
            # One after another: a burst of handshakes can overflow a server's listen queue, and the retransmission
            # would cost the first requests a second.
            self._connections.warm(plan.connections if plan.loop == "open" else 1)
        except (NoAnswer, TimeoutError) as error:
            log.warning("opening connections: %s", error)  # the requests will show it

    def follow(self) -> None:
        session = self.session
        assert session is not None
        share: Share = session.share.get()
        if session.plan.loop == "open":
            self._follow_arrivals(session, share)
        else:
            self._repeat(session, share)
        session.finished_users += 1
        if session.plan.loop == "open" or session.finished_users >= self.environment.runner.user_count:
            session.close()
            _say_done(self.environment)
        gevent.sleep(3600)  # the shape ends the run

    tasks: ClassVar[list[Callable[[Any], None]]] = [follow]

    def on_stop(self) -> None:
        if self.session is not None:
            self.session.close()
            self._connections.close()

    def _follow_arrivals(self, session: Session, share: Share) -> None:
        plan, recorder = session.plan, session.recorder
        pool = Pool(plan.max_in_flight)
        mine = thin(len(plan.schedule.due_s), share.index, share.of)
        arrivals = list(
            zip(plan.schedule.due_s[mine].tolist(), plan.call[mine].tolist(), plan.key[mine].tolist(), strict=True)
        )
        gc.collect()
        gc.freeze()
        clock = alarm()
        try:
            for due_s, call, key in arrivals:
                clock.wait_until(share.start_s + due_s)
                late_s = time.perf_counter() - share.start_s - due_s
                if pool.full() or late_s > MAX_LATE_S:
                    recorder.add(due_s, nan, nan, Outcome.DROPPED, "", call)
                else:
                    pool.spawn(self._send, session, share, due_s, call, key)
            left_s = share.start_s + plan.schedule.end_s - time.perf_counter()
            gevent.sleep(max(left_s, 0))
            pool.join(timeout=plan.timeout_s + 1.0)
        finally:  # also when Locust ends the run early
            session.close()
            clock.close()
            pool.kill(block=False)

    def _repeat(self, session: Session, share: Share) -> None:
        plan = session.plan
        i = (share.index * 7919 + session.started_users * 104729) % len(plan.call)
        session.started_users += 1
        gevent.sleep(max(share.start_s - time.perf_counter(), 0))
        while (now_s := time.perf_counter() - share.start_s) < plan.schedule.end_s:
            self._send(session, share, now_s, int(plan.call[i]), int(plan.key[i]))
            i = (i + 1) % len(plan.call)

    def _send(self, session: Session, share: Share, due_s: float, index: int, key: int) -> None:
        call = session.plan.calls[index]
        sent_s = time.perf_counter() - share.start_s
        head = self._heads[index]
        if key >= 0:
            head += b"X-Prism-Key: k%d\r\n" % key
        outcome, version, length = Outcome.CONNECTION, "", 0
        session.sent += 1
        number = session.sent
        session.open[number] = (due_s, sent_s, index)
        try:
            answer = self._connections.post(head, call.body)
            outcome, version, length = outcome_of(answer.status), answer.version, answer.body_bytes
        except TimeoutError:
            outcome = Outcome.TIMEOUT
        except NoAnswer:
            pass
        # A request that Locust cut off stays open, and the end of the session records it.
        del session.open[number]
        done_s = time.perf_counter() - share.start_s
        session.recorder.add(due_s, sent_s, done_s, outcome, session.label(call, version), index)
        self.environment.events.request.fire(
            request_type="POST",
            name=call.name,
            response_time=(done_s - due_s) * 1e3,
            response_length=length,
            exception=None if outcome is Outcome.OK else CatchResponseError(outcome.label),
            context={},
        )


class PlanShape(LoadTestShape):  # type: ignore[misc]
    """As many Locust users as the plan needs, until every process is done; Locust asks once a second."""

    abstract = True
    plan: Plan | None = None
    failed = False
    parent = 0  # the process that asked for the run: nobody is there to read the samples once it is gone. 0: a person

    def tick(self) -> tuple[int, float] | None:
        state = _states.get(id(self.runner))
        abandoned = self.parent and os.getppid() != self.parent
        if self.failed or abandoned or (state is not None and state.over(_lost(self.runner))):
            return None
        workers = max(_worker_count(self.runner), 1)
        users = workers if self.plan is None or self.plan.loop == "open" else max(self.plan.users, workers)
        return users, users


@dataclass(slots=True)
class _Progress:
    """What the process that gives the orders (master, or the only one) knows about the others."""

    workers: int
    ready: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)

    def over(self, lost: set[str]) -> bool:
        """Whether every process is done or lost; or one was lost while the others wait for it to begin."""
        if len(self.ready) < self.workers:
            return bool(lost)
        return self.ready <= self.done | lost


_states: dict[int, _Progress] = {}


def prepare(environment: Environment, make_plan: Callable[[], Plan], folder: Path | None) -> None:
    """At the start of a run, in every process: make the plan, and start once all others have theirs."""
    runner = environment.runner
    if not isinstance(runner, WorkerRunner):
        _states[id(runner)] = _Progress(max(_worker_count(runner), 1))
    plan = make_plan()
    PlanShape.plan, PlanShape.failed = plan, False
    if isinstance(runner, MasterRunner):
        return
    session = Session(plan, folder)
    PlanUser.session = session
    gevent.spawn(session.observe)
    if isinstance(runner, WorkerRunner):
        runner.send_message(READY)
    else:
        _states[id(runner)].ready.add(runner.client_id)
        # The user opens its connections before time 0.
        session.share.set(Share(0, 1, time.perf_counter() + LEAD_S))


def give_up(environment: Environment) -> None:
    """A process could not make its plan: end the run everywhere."""
    PlanUser.session = None
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.send_message(FAILED)
    else:
        PlanShape.failed = True


def forget(environment: Environment) -> None:
    """After a run, so that another can be started from Locust's page."""
    if PlanUser.session is not None:
        PlanUser.session.close()  # a user that Locust stops before its first step does not
    _states.pop(id(environment.runner), None)


def connect(environment: Environment, parent: int = 0) -> None:
    """Once per process: listen for signals and for what the others say."""
    runner = environment.runner
    PlanShape.parent = parent
    _interrupts(environment)

    def on_ready(environment: Environment, msg: Any, **_: Any) -> None:
        state = _states.get(id(runner))
        if state is None:
            return
        state.ready.add(msg.node_id)
        if len(state.ready) == state.workers:
            for i, node in enumerate(sorted(state.ready)):
                runner.send_message(START, {"index": i, "of": state.workers, "in_s": LEAD_S}, client_id=node)

    def on_start(environment: Environment, msg: Any, **_: Any) -> None:
        if PlanUser.session is not None:
            start_s = time.perf_counter() + msg.data["in_s"]
            PlanUser.session.share.set(Share(msg.data["index"], msg.data["of"], start_s))

    def on_done(environment: Environment, msg: Any, **_: Any) -> None:
        state = _states.get(id(runner))
        if state is not None:
            state.done.add(msg.node_id)

    def on_failed(environment: Environment, msg: Any, **_: Any) -> None:
        log.error("a worker could not prepare the run")
        PlanShape.failed = True

    if isinstance(runner, MasterRunner):
        runner.register_message(READY, on_ready)
        runner.register_message(FAILED, on_failed)
        runner.register_message(DONE, on_done)
    elif isinstance(runner, WorkerRunner):
        runner.register_message(START, on_start)


def _interrupts(environment: Environment) -> None:
    """Have SIGINT and SIGTERM end the run between two steps of the event loop.

    Python's own handler raises KeyboardInterrupt in whichever greenlet runs at that moment. In the one that follows the
    plan it passes Locust's clean-up by, and all samples with it. Locust handles SIGTERM only after a headless
    run, until when the signal kills.
    """
    runner = environment.runner

    def interrupt() -> None:
        if PlanUser.session is not None:
            PlanUser.session.close()
        ending = runner.state in (STATE_CLEANUP, STATE_STOPPING, STATE_STOPPED)
        if ending and environment.parsed_options.headless and not isinstance(runner, WorkerRunner):
            return  # without being told, and would not be waiting for it
        # Where Locust waits for it, to end in order.
        gevent.get_hub().handle_system_error(KeyboardInterrupt, KeyboardInterrupt())

    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, interrupt)


def _say_done(environment: Environment) -> None:
    runner = environment.runner
    if isinstance(runner, LocalRunner):
        _states[id(runner)].done.add(runner.client_id)
    else:
        runner.send_message(DONE)


def _lost(runner: Any) -> set[str]:
    """Workers that have not been heard of for long, or have left."""
    if not isinstance(runner, MasterRunner):
        return set()
    state = _states[id(runner)]
    silent = {client.id for client in runner.clients.missing}
    return silent | (state.ready - {client.id for client in runner.clients.all})


def _worker_count(runner: Any) -> int:
    if isinstance(runner, MasterRunner):
        return len(runner.clients.ready) + len(runner.clients.spawning) + len(runner.clients.running)
    return 1
