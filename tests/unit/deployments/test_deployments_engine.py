import asyncio
import threading
import time

import numpy as np
import pytest

from cluster.costs import CostCurve
from cluster.errors import Cancelled, DeadlineExceeded, EngineFailed, Overloaded
from cluster.policy.batch import BatchPolicy
from cluster.tensors import Signature, TensorSpec
from deployments.engine import Engine
from deployments.wire.batches import MicroBatch

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),), batched=True, max_rows=8
)
POISON = -1.0


class Doubling:
    """A runtime that doubles, counts its calls, can be held, and fails on poisoned rows."""

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, inputs):
        assert self.gate.wait(10)
        self.calls.append(len(inputs[0]))
        if (inputs[0] == POISON).any():
            raise EngineFailed("poison")
        return (inputs[0] * 2,)


def batch(*values, rows=1, deadline_s=None, priority=0):
    late = time.monotonic() + 30 if deadline_s is None else deadline_s
    array = np.repeat(np.array([[v, v] for v in values], np.float32), rows, axis=0)
    return MicroBatch((rows,) * len(values), (late,) * len(values), (array,), ((2,),), priority)


class Bench:
    """An engine on the running loop, and its answers."""

    def __init__(self, policy=None, signature=SIGNATURE, runtime=None):
        self.runtime = runtime or Doubling()
        self.engine = Engine(
            self.runtime, signature, policy or BatchPolicy(max_rows=8, max_queue_rows=32), asyncio.get_running_loop()
        )
        self.engine.start()

    def submit(self, micro):
        answered = asyncio.get_running_loop().create_future()
        self.engine.submit(micro, answered.set_result)
        return answered


@pytest.fixture
async def bench():
    made = Bench()
    yield made
    made.runtime.gate.set()
    made.engine.close()


async def test_an_idle_engine_answers_a_single_request_alone(bench):
    result = await bench.submit(batch(3.0))
    assert result.errors == {}
    np.testing.assert_array_equal(result.outputs[0], [[6.0, 6.0]])
    assert bench.runtime.calls == [1] and result.batch_rows == 1


async def test_what_arrives_while_a_batch_runs_goes_together_and_gets_its_own_rows(bench):
    bench.runtime.gate.clear()
    first = bench.submit(batch(1.0))
    rest = [bench.submit(batch(float(v), float(v + 1))) for v in (10, 20, 30)]
    await asyncio.sleep(0)
    bench.runtime.gate.set()
    await first
    for v, result in zip((10, 20, 30), await asyncio.gather(*rest), strict=True):
        np.testing.assert_array_equal(result.outputs[0][:, 0], [2 * v, 2 * v + 2])
    assert bench.runtime.calls == [1, 6]


async def test_one_gateway_with_a_deep_queue_does_not_make_another_wait_for_all_of_it(bench):
    bench.runtime.gate.clear()
    done = []

    def submit(source, value):
        micro = batch(*[value] * 8)
        micro.source = source
        answered = bench.submit(micro)
        answered.add_done_callback(lambda _: done.append(source))
        return answered

    first = bench.submit(batch(0.0))
    deep = [submit(1, 1.0) for _ in range(3)]
    late = submit(2, 2.0)
    assert bench.engine.ahead_rows(1) == 24 + 8 and bench.engine.ahead_rows(3) == 8 + 8
    assert bench.engine.queue_rows() == 32
    bench.runtime.gate.set()
    results = await asyncio.gather(first, *deep, late)
    assert all(not result.errors for result in results)
    assert done.index(2) == 1
    assert bench.engine.ahead_rows(1) == 0


async def test_a_full_queue_refuses_and_keeps_what_it_has(bench):
    bench.runtime.gate.clear()
    running = bench.submit(batch(1.0))
    kept = [bench.submit(batch(2.0, rows=8)) for _ in range(4)]
    refused = await bench.submit(batch(3.0))
    assert isinstance(refused.errors[0], Overloaded) and "32 rows wait" in refused.errors[0].message
    bench.runtime.gate.set()
    assert all(not r.errors for r in await asyncio.gather(running, *kept))
    assert bench.engine.queue_rows() == 0


async def test_poison_fails_alone(bench):
    bench.runtime.gate.clear()
    first = bench.submit(batch(1.0))
    mixed, other = bench.submit(batch(5.0, POISON, 7.0)), bench.submit(batch(9.0))
    bench.runtime.gate.set()
    await first
    result = await mixed
    assert list(result.errors) == [1] and isinstance(result.errors[1], EngineFailed)
    np.testing.assert_array_equal(result.outputs[0][:, 0], [10.0, 14.0])
    np.testing.assert_array_equal((await other).outputs[0][:, 0], [18.0])


async def test_the_log_names_the_request_that_the_runtime_failed_on_and_no_other(bench, caplog):
    micro = batch(5.0, POISON, 7.0)
    micro.ids, micro.traces = ("first", "second", "third"), ("", "00-abc", "")
    with caplog.at_level("WARNING", "deployments.engine"):
        assert list((await bench.submit(micro)).errors) == [1]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "second" in line and "00-abc" in line and "poison" in line


async def test_a_cancelled_request_is_not_computed(bench):
    bench.runtime.gate.clear()
    first = bench.submit(batch(1.0))
    micro = batch(5.0, 6.0)
    answered = bench.submit(micro)
    bench.engine.cancel(micro, [0])
    bench.runtime.gate.set()
    await first
    result = await answered
    assert isinstance(result.errors[0], Cancelled)
    np.testing.assert_array_equal(result.outputs[0], [[12.0, 12.0]])
    assert bench.runtime.calls == [1, 1]


async def test_a_wholly_cancelled_batch_leaves_the_queue(bench):
    bench.runtime.gate.clear()
    first = bench.submit(batch(1.0))
    micro = batch(5.0, 6.0)
    answered = bench.submit(micro)
    bench.engine.cancel(micro, [0, 1])
    assert bench.engine.queue_rows() == 0
    assert set((await answered).errors) == {0, 1}
    bench.runtime.gate.set()
    await first


async def test_what_waited_too_long_expires_without_being_computed(bench):
    bench.runtime.gate.clear()
    first = bench.submit(batch(1.0))
    late = bench.submit(batch(2.0, deadline_s=time.monotonic() + 0.02))
    await asyncio.sleep(0.03)
    bench.runtime.gate.set()
    await first
    assert isinstance((await late).errors[0], DeadlineExceeded)
    assert bench.runtime.calls == [1]


async def test_what_cannot_be_answered_in_time_is_refused_on_arrival():
    slow = BatchPolicy(max_rows=8, max_queue_rows=32, costs=CostCurve.of({1: 1.0, 8: 1.0}))
    bench = Bench(slow)
    refused = await bench.submit(batch(1.0, deadline_s=time.monotonic() + 0.5))
    assert isinstance(refused.errors[0], DeadlineExceeded) and "expected to take" in refused.errors[0].message
    assert bench.runtime.calls == []
    bench.engine.close()


async def test_an_engine_that_turns_out_faster_than_its_costs_refuses_less():
    slow = BatchPolicy(max_rows=8, max_queue_rows=32, costs=CostCurve.of({1: 1.0, 8: 1.0}))
    bench = Bench(slow)
    for value in range(8):
        assert not (await bench.submit(batch(float(value)))).errors
    answered = await bench.submit(batch(1.0, deadline_s=time.monotonic() + 0.5))
    assert not answered.errors
    bench.engine.close()


async def test_an_unexpected_exception_of_the_runtime_becomes_an_error_without_its_text(bench, caplog):
    def explode(inputs):
        raise ValueError("secret path")

    bench.runtime.run = explode
    result = await bench.submit(batch(1.0))
    assert isinstance(result.errors[0], EngineFailed) and "secret" not in result.errors[0].message


async def test_a_model_that_loses_rows_is_an_error_and_not_a_mix_up(bench):
    bench.runtime.run = lambda inputs: (inputs[0][:0],)
    result = await bench.submit(batch(1.0, 2.0))
    assert result.outputs is None
    assert all("expected 1 rows" in result.errors[i].message for i in (0, 1))


async def test_a_model_without_rows_runs_one_request_at_a_time():
    signature = Signature((TensorSpec("x", "FP32", (2, 2)),), (TensorSpec("y", "FP32", (2, 2)),), False, 1)
    bench = Bench(BatchPolicy(max_rows=1, max_queue_rows=8), signature)
    results = await asyncio.gather(
        *(
            bench.submit(MicroBatch((1,), (time.monotonic() + 9,), (np.full((2, 2), v, np.float32),), ((2, 2),)))
            for v in (1.0, 2.0, 3.0)
        )
    )
    assert [float(r.outputs[0][0, 0]) for r in results] == [2.0, 4.0, 6.0]
    bench.engine.close()


async def test_closing_answers_everything_that_waits(bench):
    bench.runtime.gate.clear()
    running = bench.submit(batch(1.0))
    waiting = bench.submit(batch(2.0))
    bench.engine.close()
    assert isinstance((await waiting).errors[0], Cancelled)
    bench.runtime.gate.set()
    assert not (await running).errors
    assert isinstance((await bench.submit(batch(3.0))).errors[0], Cancelled)


async def test_a_hung_batch_fails_the_health_check():
    now = [0.0]
    runtime = Doubling()
    runtime.gate.clear()
    engine = Engine(runtime, SIGNATURE, BatchPolicy(max_rows=8), asyncio.get_running_loop(), clock=lambda: now[0])
    engine.start()
    answered = asyncio.get_running_loop().create_future()
    engine.submit(batch(1.0, deadline_s=1e9), answered.set_result)
    engine.check()
    now[0] = 61.0
    with pytest.raises(EngineFailed, match="running for 61 s"):
        engine.check()
    runtime.gate.set()
    await answered
    engine.check()
    engine.close()


async def test_every_request_is_answered_once_with_its_own_rows_under_load_and_cancellation(bench):
    rng = np.random.default_rng(7)
    answers, pending = {}, []
    for i in range(300):
        values = [float(1000 * i + j) for j in range(int(rng.integers(1, 5)))]
        micro = batch(*values, rows=int(rng.integers(1, 3)), priority=int(rng.integers(0, 2)))
        answered = asyncio.get_running_loop().create_future()

        def done(result, i=i, answered=answered):
            assert i not in answers
            answers[i] = result
            answered.set_result(None)

        bench.engine.submit(micro, done)
        pending.append((i, values, micro, answered))
        if rng.random() < 0.1:
            bench.engine.cancel(micro, [0])
        if rng.random() < 0.3:
            await asyncio.sleep(0)
    await asyncio.gather(*(p[3] for p in pending))
    for i, values, micro, _ in pending:
        result = answers[i]
        live = [v for j, v in enumerate(values) if j not in result.errors]
        expected = np.repeat(np.array(live, np.float32) * 2, micro.rows[0]) if live else np.empty(0, np.float32)
        got = result.outputs[0][:, 0] if result.outputs is not None else np.empty(0, np.float32)
        np.testing.assert_array_equal(got, expected)
    assert any(not r.errors for r in answers.values())


async def test_less_urgent_work_does_not_make_an_urgent_request_late():
    slow = BatchPolicy(max_rows=8, max_queue_rows=64, costs=CostCurve.of({1: 0.2, 8: 0.2}))
    bench = Bench(slow)
    bench.runtime.gate.clear()
    background = [bench.submit(batch(*[1.0] * 8, priority=1)) for _ in range(4)]
    urgent = bench.submit(batch(2.0, deadline_s=time.monotonic() + 0.6))
    late = await bench.submit(batch(3.0, deadline_s=time.monotonic() + 0.6, priority=1))
    assert isinstance(late.errors[0], DeadlineExceeded)
    bench.runtime.gate.set()
    assert not (await urgent).errors
    await asyncio.gather(*background)
    bench.engine.close()


async def test_a_batch_of_microseconds_runs_on_the_loop_and_a_longer_one_in_the_thread():
    quick = BatchPolicy(max_rows=8, max_queue_rows=32, costs=CostCurve.of({1: 1e-5, 4: 1e-5, 8: 1.0}))
    bench = Bench(quick)
    threads = []
    run = bench.runtime.run

    def traced(inputs):
        threads.append(threading.current_thread() is threading.main_thread())
        return run(inputs)

    bench.runtime.run = traced
    first, second = bench.submit(batch(1.0)), bench.submit(batch(2.0, 3.0))
    np.testing.assert_array_equal((await first).outputs[0][:, 0], [2.0])
    np.testing.assert_array_equal((await second).outputs[0][:, 0], [4.0, 6.0])
    assert not (await bench.submit(batch(*[4.0] * 8))).errors
    assert threads == [True, True, False]
    bench.engine.close()
