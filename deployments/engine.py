"""The engine of a model replica: a bounded queue of micro-batches in front of one runtime.

`BatchPolicy` decides what runs; this shell reads the clock, merges arrays, runs the runtime in a thread of its own
while the event loop keeps accepting (a batch of microseconds runs on the loop itself), and gives every micro-batch its
own rows back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from cluster.errors import Cancelled, DeadlineExceeded, EngineFailed, Overloaded, ServingError
from cluster.policy.arrival import PACE_GAIN, too_late
from cluster.policy.batch import BatchPolicy, Waiting
from cluster.policy.shares import Shares
from cluster.tensors import Signature
from deployments.wire.batches import Array, Done, MicroBatch, MicroResult

log = logging.getLogger(__name__)

Arrays = tuple[Array, ...]
STUCK_FACTOR = 20  # a batch that takes so many times its predicted time has hung
STUCK_LEAST_S = 60.0
# A batch that is measured to take less runs on the loop: handing it to the thread and back costs about as much, and
# longer ones would keep the loop from accepting.
INLINE_S = 0.0002


class Runs(Protocol):
    """What the engine needs of a runtime (`converters.runtime.Runtime`)."""

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs for one batch. Called from one thread at a time."""


class _Unit:
    """A micro-batch in the engine. `errors` holds what has been decided for single requests before it ran."""

    __slots__ = ("arrays", "batch", "done", "errors", "started_s", "waiting")

    def __init__(self, batch: MicroBatch, done: Done, waiting: Waiting, errors: dict[int, ServingError]) -> None:
        self.batch = batch
        self.done = done
        self.waiting = waiting
        self.errors = errors
        self.started_s = 0.0
        self.arrays: Arrays = batch.arrays

    def live_rows(self) -> list[int]:
        """Rows of each request that is still wanted."""
        return [rows for i, rows in enumerate(self.batch.rows) if i not in self.errors]

    def drop_unwanted(self) -> None:
        """Take the rows of requests that already have an error out of the arrays."""
        keep = np.repeat([i not in self.errors for i in range(len(self.batch.rows))], self.batch.rows)
        self.arrays = tuple(array[keep] for array in self.batch.arrays)


class _Job:
    """A batch on its way through the worker thread."""

    __slots__ = ("compute_s", "errors", "inputs", "outputs", "parts", "rows", "units")

    def __init__(self, units: list[_Unit], inputs: Arrays, rows: int, parts: list[int]) -> None:
        self.units = units
        self.inputs = inputs
        self.rows = rows
        self.parts = parts  # rows of each live request, in order
        self.outputs: Arrays | None = None
        self.errors: dict[int, ServingError] = {}  # by position in `parts`
        self.compute_s = 0.0


class Engine:
    """Answers micro-batches with one runtime.

    `submit`, `cancel` and the callbacks run on the event loop; only `Runs.run` runs in the worker thread. A batch that
    fails is run again request by request, so that one poisonous request cannot fail its neighbours.
    """

    def __init__(
        self,
        runtime: Runs,
        signature: Signature,
        policy: BatchPolicy,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime = runtime
        self._signature = signature
        self._policy = policy
        self._loop = loop
        self._clock = clock
        self._queue: dict[int, _Unit] = {}
        self._by_batch: dict[int, _Unit] = {}
        self._queue_rows = 0
        self._running: _Job | None = None
        self._running_since_s = 0.0
        self._next_id = 0
        self._urgent_run = 0
        self._shares = Shares()
        self._wake: asyncio.TimerHandle | None = None
        self._closed = False
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="prism-engine", daemon=True)
        self.rows_in = 0
        self.rows_done = 0
        self.batches = 0
        self.busy_s = 0.0
        self.expected_s = 0.0  # what the batches behind `busy_s` should have taken by the costs
        self._pace = 1.0  # what batches take of late, as a share of that; refusing for more could refuse for ever

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Answer what waits with `Cancelled` and end the thread. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for unit in list(self._queue.values()):
            self._leave(unit)
            self._fail_rest(unit, Cancelled("the replica is stopping"))
        self._jobs.put(None)

    # -- what the wire calls --

    def queue_rows(self) -> int:
        """Rows that wait, without those being computed."""
        return self._queue_rows

    def ahead_rows(self, source: int) -> int:
        """Rows that would be computed before an interactive micro-batch which comes from `source` now."""
        if not self._queue:
            return 0
        return self._policy.rows_ahead([unit.waiting for unit in self._queue.values()], 0, source, self._shares)

    def submit(self, batch: MicroBatch, done: Done) -> None:
        """Queue a micro-batch; `done` is called exactly once, later, on the loop."""
        rows = batch.total_rows
        now_s = self._clock()
        self.rows_in += rows
        errors: dict[int, ServingError] = {}
        if self._closed:
            refusal: ServingError | None = Cancelled("the replica is stopping")
        elif not self._policy.admits(self._queue_rows, rows):
            refusal = Overloaded(
                f"queue: {self._queue_rows} rows wait, at most {self._policy.max_queue_rows} may; {rows} more came"
            )
        else:
            refusal = None
            self._refuse_late(batch, rows, now_s, errors)
        if refusal is not None or len(errors) == len(batch.rows):
            result = MicroResult(None, errors if refusal is None else dict.fromkeys(range(len(batch.rows)), refusal))
            self._loop.call_soon(done, result)
            return
        self._next_id += 1
        waiting = Waiting(self._next_id, rows, now_s, max(batch.deadlines_s), batch.priority, batch.tails, batch.source)
        unit = _Unit(batch, done, waiting, errors)
        self._queue[waiting.id] = unit
        self._by_batch[id(batch)] = unit
        self._queue_rows += rows
        if self._running is None:
            self._next()

    def cancel(self, batch: MicroBatch, indices: Sequence[int]) -> None:
        """Drop requests of a micro-batch that has not started; one that has is left to finish."""
        unit = self._by_batch.get(id(batch))
        if unit is None:
            return
        for index in indices:
            unit.errors.setdefault(index, Cancelled("the client went away"))
        if len(unit.errors) == len(batch.rows):
            self._leave(unit)
            self._loop.call_soon(unit.done, MicroResult(None, unit.errors))

    # -- what the replica calls --

    def check(self) -> None:
        """Raises: EngineFailed if the batch that is running has hung, or the worker thread is gone."""
        if self._running is not None:
            age_s = self._clock() - self._running_since_s
            limit_s = max(STUCK_LEAST_S, STUCK_FACTOR * self._policy.costs.run_s(self._running.rows))
            if age_s > limit_s:
                raise EngineFailed(f"a batch of {self._running.rows} rows has been running for {age_s:.0f} s")
        if not self._thread.is_alive() and not self._closed:
            raise EngineFailed("the engine's thread is gone")

    def busy_total_s(self) -> float:
        """Seconds computed since the start, the running batch included."""
        return self.busy_s + (self._clock() - self._running_since_s if self._running is not None else 0.0)

    def set_policy(self, policy: BatchPolicy) -> None:
        """Use another policy from the next batch on."""
        self._policy = policy

    # -- inside --

    def _refuse_late(self, batch: MicroBatch, rows: int, now_s: float, errors: dict[int, ServingError]) -> None:
        """Refuse the requests whose deadline passes before an answer can be expected."""
        pace, left_s = self._pace, 0.0
        if self._running is not None:
            left_s = max(0.0, pace * self._policy.costs.run_s(self._running.rows) - (now_s - self._running_since_s))
        earliest_s = min(batch.deadlines_s)
        if earliest_s >= now_s + left_s + pace * self._policy.predict_s(self._queue_rows, rows):
            return
        units = [unit.waiting for unit in self._queue.values()]
        ahead = self._policy.rows_ahead(units, batch.priority, batch.source, self._shares)
        needs_s = left_s + pace * self._policy.predict_s(ahead, rows)
        for i, deadline_s in enumerate(batch.deadlines_s):
            if deadline_s < now_s + needs_s:
                errors[i] = too_late(deadline_s - now_s, needs_s)

    def _next(self) -> None:
        """Run the next batch, if it is time for one."""
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        while self._queue and self._running is None:
            now_s = self._clock()
            units = [unit.waiting for unit in self._queue.values()]
            decision = self._policy.decide(units, now_s, self._urgent_run, self._shares)
            for unit_id in decision.expire:
                unit = self._queue[unit_id]
                self._leave(unit)
                self._fail_rest(unit, DeadlineExceeded("deadline: it passed while the request waited for a batch"))
            if decision.run:
                self._start([self._queue[unit_id] for unit_id in decision.run], now_s)
            elif self._queue:
                self._wake = self._loop.call_later(max(0.0, decision.wake_s - now_s), self._next)
                return

    def _start(self, units: list[_Unit], now_s: float) -> None:
        others = any(unit.waiting.priority > units[0].waiting.priority for unit in self._queue.values())
        self._urgent_run = self._urgent_run + 1 if others else 0
        self._shares.ran(units[0].waiting.priority, [(unit.waiting.source, unit.waiting.rows) for unit in units])
        ready: list[_Unit] = []
        for unit in units:
            self._leave(unit)
            unit.started_s = now_s
            for i, deadline_s in enumerate(unit.batch.deadlines_s):
                if deadline_s < now_s:
                    unit.errors.setdefault(
                        i, DeadlineExceeded("deadline: it passed while the request waited for a batch")
                    )
            if len(unit.errors) == len(unit.batch.rows):
                unit.done(MicroResult(None, unit.errors))
                continue
            if unit.errors:
                unit.drop_unwanted()
            ready.append(unit)
        if not ready:
            return
        if len(ready) == 1:
            inputs = ready[0].arrays
        else:
            try:
                inputs = tuple(np.concatenate(parts) for parts in zip(*(u.arrays for u in ready), strict=True))
            except (MemoryError, ValueError) as error:
                log.exception("%d micro-batches cannot be merged", len(ready))
                for unit in ready:
                    self._fail_rest(unit, EngineFailed(f"the batch cannot be put together: {type(error).__name__}"))
                return
        parts = [rows for unit in ready for rows in unit.live_rows()]
        self._running = _Job(ready, inputs, sum(parts), parts)
        self._running_since_s = now_s
        if 0.0 < self._policy.costs.run_s(self._running.rows) <= INLINE_S:
            self._loop.call_soon(self._run_here, self._running)
        else:
            self._jobs.put(self._running)

    def _leave(self, unit: _Unit) -> None:
        if self._queue.pop(unit.waiting.id, None) is not None:
            self._queue_rows -= unit.waiting.rows
            self._by_batch.pop(id(unit.batch), None)

    @staticmethod
    def _fail_rest(unit: _Unit, error: ServingError) -> None:
        unit.done(MicroResult(None, {i: unit.errors.get(i, error) for i in range(len(unit.batch.rows))}))

    def _finish(self, job: _Job) -> None:
        """Back on the loop: hand every unit its rows."""
        self._running = None
        self.busy_s += job.compute_s
        expected_s = self._policy.costs.run_s(job.rows)
        self.expected_s += expected_s
        if expected_s > 0:
            self._pace += PACE_GAIN * (min(1.0, job.compute_s / expected_s) - self._pace)
        self.batches += 1
        self.rows_done += job.rows
        if not self._closed:
            self._next()  # the thread works on the next batch while this one's answers are written
        position = offset = 0
        for unit in job.units:
            errors, count = unit.errors, len(unit.batch.rows)
            live = [i for i in range(count) if i not in errors] if errors else range(count)
            rows = 0
            for i in live:
                error = job.errors.get(position)
                if error is not None:
                    errors[i] = error
                else:
                    rows += job.parts[position]
                position += 1
            if job.errors:
                _tell_failed(unit)
            outputs: Arrays | None = None
            if rows and job.outputs is not None:
                whole = not self._signature.batched or rows == job.rows
                outputs = job.outputs if whole else tuple(array[offset : offset + rows] for array in job.outputs)
                offset += rows
            unit.done(
                MicroResult(
                    outputs,
                    errors,
                    queue_s=unit.started_s - unit.waiting.arrived_s,
                    compute_s=job.compute_s,
                    batch_rows=job.rows,
                )
            )

    def _work(self) -> None:
        """The worker thread."""
        while (job := self._jobs.get()) is not None:
            self._compute(job)
            try:
                self._loop.call_soon_threadsafe(self._finish, job)
            except RuntimeError:  # the loop is closed: nobody is left to answer
                return

    def _run_here(self, job: _Job) -> None:
        """On the loop, a turn after the batch was put together, so that what came with it could join the next."""
        self._compute(job)
        self._finish(job)

    def _compute(self, job: _Job) -> None:
        started_s = time.perf_counter()
        try:
            job.outputs = self._run(job.inputs, job.rows)
        except ServingError as error:
            self._run_apart(job, error)
        job.compute_s = time.perf_counter() - started_s

    def _run(self, inputs: Arrays, rows: int) -> Arrays:
        try:
            outputs = self._runtime.run(inputs)
        except ServingError:
            raise
        except Exception as error:
            log.exception("the runtime failed on a batch of %d rows", rows)
            raise EngineFailed(f"the runtime failed: {type(error).__name__}") from None
        if self._signature.batched:
            for spec, array in zip(self._signature.outputs, outputs, strict=True):
                if array.shape[:1] != (rows,):
                    raise EngineFailed(f"{spec.name}: expected {rows} rows, the model gave shape {list(array.shape)}")
        return outputs

    def _run_apart(self, job: _Job, error: ServingError) -> None:
        """Run each request of a failed batch alone, so that only those fail that cannot be answered."""
        if len(job.parts) == 1:
            job.errors[0] = _bare(error)
            return
        answered: list[Arrays] = []
        offset = 0
        for position, rows in enumerate(job.parts):
            inputs = tuple(array[offset : offset + rows] for array in job.inputs)
            offset += rows
            try:
                answered.append(self._run(inputs, rows))
            except ServingError as own:
                job.errors[position] = _bare(own)
        if answered:
            try:
                job.outputs = tuple(np.concatenate(parts) for parts in zip(*answered, strict=True))
            except ValueError:  # outputs whose other dimensions differ from request to request
                job.errors = {i: job.errors.get(i, _bare(error)) for i in range(len(job.parts))}


def _tell_failed(unit: _Unit) -> None:
    """Log whose requests the runtime failed on, where clients said how to call them."""
    batch = unit.batch
    for i, error in unit.errors.items():
        name, trace = batch.ids[i] if batch.ids else "", batch.traces[i] if batch.traces else ""
        if isinstance(error, EngineFailed) and (name or trace):
            log.warning("request %r (traceparent %r) failed: %s", name, trace, error.message)


def _bare(error: ServingError) -> ServingError:
    """The error without the frames it passed through: they hold the job that holds the error."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error
