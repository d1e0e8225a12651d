import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from cluster.errors import InvalidRequest
from loadtest.bench import generator
from loadtest.bench.generator import ClosedLoop, LoadPlan, OpenLoop


class Wire:
    """A client that only remembers when its requests were due."""

    def __init__(self):
        self.due_s, self.sent = 0.0, []
        self.transport = SimpleNamespace(is_closing=lambda: False)

    def send(self, due_s):
        self.due_s = due_s
        self.sent.append(due_s)


@pytest.fixture
def clock(monkeypatch):
    made = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(generator, "now", lambda: made.now_s)
    return made


def test_a_closed_loop_sends_until_its_end_and_counts_what_arrives_inside(clock):
    pace, client = ClosedLoop(1.0, 2.0), Wire()
    for clock.now_s in (0.5, 1.5, 1.9, 2.0, 2.5):
        pace.free(client)
        pace.answered(client, clock.now_s + 0.05)
    assert client.sent == [0.5, 1.5, 1.9]
    assert pace.latencies_s == pytest.approx([0.05, 0.05])


async def test_an_open_loop_counts_latency_from_the_due_time_when_connections_ran_out(clock):
    pace, client = OpenLoop([0.1, 0.2, 9.0], 0.0, asyncio.get_running_loop()), Wire()
    clock.now_s = 0.1
    pace.free(client)
    clock.now_s = 0.7  # the second has been due for half a second when the first answer arrives
    pace.answered(client, clock.now_s)
    pace.free(client)
    clock.now_s = 0.8
    pace.answered(client, clock.now_s)
    assert client.sent == [0.1, 0.2]
    assert pace.latencies_s == pytest.approx([0.6, 0.6])
    assert pace.lags_s == pytest.approx([0.0, 0.5])
    assert pace.close() == 1


async def test_an_open_loop_sends_when_a_request_becomes_due():
    loop = asyncio.get_running_loop()
    due_s = generator.now() + 0.02
    pace, client = OpenLoop([due_s], 0.0, loop), Wire()
    pace.free(client)
    assert client.sent == []
    async with asyncio.timeout(5):
        while not client.sent:
            await asyncio.sleep(0)
    assert pace.lags_s[0] >= 0
    assert pace.close() == 0


@pytest.mark.parametrize(
    "wrong",
    [{"port": 0}, {"requests": ()}, {"connections": 5000}, {"seconds": 1e9}, {"seconds": 100.0, "rate": 1e9}],
)
def test_a_plan_without_bounds_is_refused_by_field(wrong):
    name = "rate" if "rate" in wrong else next(iter(wrong))
    with pytest.raises(InvalidRequest, match=name):
        LoadPlan(**{"port": 80, "requests": ("x",), **wrong})


def test_a_plan_survives_the_line_that_carries_it():
    plan = LoadPlan(80, ("a", "b"), 8, 1.0, 20.0)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=LoadPlan) == plan
