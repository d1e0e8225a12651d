import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.policy.load import Load
from cluster.policy.scale import Memory, ScalePolicy

POLICY = ScalePolicy(min_replicas=1, max_replicas=4, target_utilisation=0.7, down_after_s=30, start_s=2)
CALM = Load(replicas=1, target=1, rows_per_s=10, done_per_s=10, busy_share=0.1, capacity_rows_per_s=100)

loads = st.builds(
    Load,
    replicas=st.integers(0, 6),
    target=st.integers(0, 6),
    rows_per_s=st.floats(0, 1e5),
    done_per_s=st.floats(0, 1e5),
    queue_rows=st.floats(0, 1e5),
    backlog_rows=st.floats(0, 1e5),
    busy_share=st.floats(0, 1),
    capacity_rows_per_s=st.floats(0, 1e4),
    start_s=st.floats(0, 100),
    wanted=st.booleans(),
)


def played(policy, rates, start_s=2.0, step_s=0.5, target=1):
    """Targets over time under a rate that everybody sees at once; replicas answer `start_s` after they are ordered."""
    memory, ready, starting, targets = Memory(), target, [], []
    waiting = 0.0
    for step, rate in enumerate(rates):
        now_s = step * step_s
        ready += sum(count for at_s, count in starting if at_s <= now_s)
        starting = [(at_s, count) for at_s, count in starting if at_s > now_s]
        waiting = max(0.0, waiting + (rate - ready * 100) * step_s)
        load = Load(
            replicas=ready, target=target, rows_per_s=rate, backlog_rows=waiting, busy_share=0.5,
            capacity_rows_per_s=100, start_s=start_s,
        )  # fmt: skip
        verdict = policy.decide(load, memory, now_s)
        memory = verdict.memory
        if verdict.replicas > target:
            starting.append((now_s + start_s, verdict.replicas - target))
        elif verdict.replicas < target:
            starting, ready = [], min(ready, verdict.replicas)
        target = verdict.replicas
        targets.append(target)
    return targets


def turns(targets):
    """How often the number of replicas changed its direction."""
    steps = [after > before for before, after in itertools.pairwise(targets) if after != before]
    return sum(one != two for one, two in itertools.pairwise(steps))


def test_a_shorter_hold_time_counts_from_when_it_is_set():
    memory, load = Memory(), replace(CALM, replicas=3, target=3, rows_per_s=200)
    for now_s in range(5):
        memory = POLICY.decide(load, memory, float(now_s)).memory
    idle = replace(load, rows_per_s=0)
    shorter = replace(POLICY, down_after_s=6)
    assert POLICY.decide(idle, memory, 14.0).replicas == 3
    assert shorter.decide(idle, memory, 14.0).replicas == 1
    assert shorter.decide(idle, memory, 5.0).replicas == 3  # and no earlier


def test_a_step_in_load_is_answered_at_once():
    assert POLICY.decide(replace(CALM, rows_per_s=100), Memory(), 0.0).replicas == 2
    assert POLICY.decide(replace(CALM, rows_per_s=1000), Memory(), 0.0).replicas == 4


@given(st.floats(1, 2000), st.integers(1, 5))
def test_one_decision_orders_enough_for_the_new_rate(rate, before):
    policy = replace(POLICY, max_replicas=100)
    load = replace(CALM, replicas=before, target=before, rows_per_s=rate)
    assert policy.decide(load, Memory(), 0.0).replicas >= rate / 100 / 0.7 - 1e-6


def test_a_queue_asks_for_replicas_even_without_arrivals():
    assert POLICY.decide(replace(CALM, rows_per_s=0, queue_rows=2000), Memory(), 0.0).replicas == 4


def test_a_queue_that_is_gone_before_a_replica_would_start_asks_for_none():
    assert POLICY.decide(replace(CALM, rows_per_s=0, queue_rows=150, start_s=2), Memory(), 0.0).replicas == 1


def test_what_is_starting_is_not_ordered_again_for_the_queue_it_will_work_off():
    policy = replace(POLICY, max_replicas=50)
    load = replace(CALM, rows_per_s=300, start_s=4)
    first = policy.decide(load, Memory(), 0.0)
    assert first.replicas > 5  # the rate alone needs five
    later = replace(load, target=first.replicas, backlog_rows=400)
    for now_s in (1.0, 2.0, 3.0):
        second = policy.decide(replace(later, backlog_rows=200 * now_s), first.memory, now_s)
        assert second.replicas == first.replicas


def test_a_longer_start_orders_more_for_the_queue_that_will_have_grown():
    policy = replace(POLICY, max_replicas=50)
    soon, late = (
        policy.decide(replace(CALM, rows_per_s=300, start_s=start_s), Memory(), 0.0).replicas for start_s in (1, 10)
    )
    assert late > soon


def test_a_start_of_minutes_does_not_order_for_a_queue_that_could_never_wait_for_so_long():
    policy = replace(POLICY, max_replicas=10_000)
    found = policy.decide(replace(CALM, rows_per_s=400, start_s=600), Memory(), 0.0).replicas
    assert 6 <= found <= 4 + 400 * 30 / 100 / (600 / 8) + 1


def test_a_climbing_rate_is_met_where_it_will_be_when_the_replica_answers():
    policy = replace(POLICY, max_replicas=50)
    climbing = played(policy, [50 + 10 * step * 0.5 for step in range(60)], start_s=5)
    assert climbing[-1] >= (50 + 10 * 29.5 + 10 * 4) / 100 / 0.7
    rates = tuple((float(at_s), 50.0 + 10 * at_s) for at_s in range(20))
    ahead = policy.decide(replace(CALM, rows_per_s=240, start_s=5), Memory(rates=rates), 19.5).replicas
    assert (
        ahead
        >= (240 + 50 - 10) / 100 / 0.7
        > policy.decide(replace(CALM, replicas=4, target=4, rows_per_s=240, start_s=5), Memory(), 19.5).replicas - 1
    )


def test_the_first_seconds_of_a_version_are_no_climb():
    assert set(played(POLICY, [0.0, 8.0, 12.0, 16.0, 18.0] + [20.0] * 40, start_s=20)) == {1}


def test_a_rate_that_swings_is_given_room_for_its_swings():
    policy = replace(POLICY, max_replicas=50)
    rates = tuple((float(at_s), 500.0 + (300 if at_s % 2 else -300)) for at_s in range(20))
    load = replace(CALM, replicas=8, target=8, rows_per_s=500)
    assert policy.decide(load, Memory(rates=rates), 19.5).replicas >= 10
    assert policy.decide(load, Memory(), 19.5).replicas == 8


def test_noise_of_a_second_or_two_orders_no_replica_and_what_lasts_does():
    calm, above = [130.0] * 40, [155.0]  # two replicas are to be given 140
    two = replace(POLICY, min_replicas=2)
    assert max(played(two, calm + above * 4 + calm, target=2)) == 2
    lasting = played(two, calm + above * 8, target=2)
    assert lasting[-1] == 3 and lasting.index(3) <= 40 + 6


def test_a_step_of_several_replicas_is_ordered_in_one_decision_whatever_came_before():
    targets = played(replace(POLICY, max_replicas=50), [35.0] * 60 + [700.0] * 2)
    assert targets[59] == 1 and targets[60] >= 10


def test_a_lone_replica_keeps_as_much_free_as_two_together():
    assert [played(POLICY, [rate] * 20)[-1] for rate in (0.0, 39.0, 41.0, 69.0, 139.0, 141.0)] == [1, 1, 2, 2, 2, 3]


def test_a_lone_replica_is_judged_by_what_is_usual_and_not_by_a_second():
    rates = [20.0] * 40 + [60.0] * 2 + [20.0] * 40
    assert max(played(POLICY, rates)) == 1


def test_a_second_replica_stays_until_the_load_is_well_below_what_called_it():
    calm = [20.0] * 300
    assert played(POLICY, [41.0] * 40 + [30.0] * 300)[-1] == 2
    assert played(POLICY, [41.0] * 40 + calm)[-1] == 1


def test_a_second_replica_keeps_no_third():
    assert played(POLICY, [300.0] * 40 + [100.0] * 300)[-1] == 2


def test_an_operator_who_wants_replicas_full_may_have_a_lone_one_full_too():
    assert played(replace(POLICY, target_utilisation=1.0), [95.0] * 20)[-1] == 1
    assert played(replace(POLICY, target_utilisation=0.25), [24.0] * 20)[-1] == 1


@given(st.floats(0.05, 1.0))
def test_a_lone_replica_is_never_given_more_than_one_of_many(target):
    policy = replace(POLICY, target_utilisation=target)
    assert 0 < policy.alone_utilisation <= target


def test_calm_load_is_kept():
    assert POLICY.decide(CALM, Memory(), 0.0).replicas == 1


def test_replicas_go_only_after_demand_has_stayed_lower():
    load = replace(CALM, replicas=3, target=3, rows_per_s=10)
    memory = Memory()
    for now_s in range(0, 30, 5):
        verdict = POLICY.decide(load, memory, float(now_s))
        memory = verdict.memory
        assert verdict.replicas == 3
    assert POLICY.decide(load, memory, 31.0).replicas == 1


def test_a_peak_within_the_hold_time_keeps_its_replicas():
    memory = POLICY.decide(replace(CALM, replicas=4, target=4, rows_per_s=10), Memory(), 0.0).memory
    memory = POLICY.decide(replace(CALM, replicas=4, target=4, rows_per_s=150), memory, 15.0).memory
    down = POLICY.decide(replace(CALM, replicas=4, target=4, rows_per_s=10), memory, 31.0)
    assert down.replicas == 3
    assert POLICY.decide(replace(CALM, replicas=3, target=3, rows_per_s=10), down.memory, 46.0).replicas == 1


def test_bursts_that_come_back_are_waited_for_and_forgotten_once_they_stay_away():
    burst, calm = [300.0] * 10, [20.0] * 140  # 5 s every 75 s, longer than the hold time
    targets = played(replace(POLICY, max_replicas=8), (burst + calm) * 8)
    last = targets[-300:]
    assert min(last) >= 4  # it has learnt to keep them
    quiet = played(replace(POLICY, max_replicas=8), (burst + calm) * 8 + [20.0] * 2000)
    assert quiet[-1] == 1


def test_a_capacity_that_was_never_measured_is_learnt_while_busy():
    busy = replace(CALM, rows_per_s=45, done_per_s=45, busy_share=0.9, capacity_rows_per_s=0)
    assert POLICY.capacity(busy) == 50
    assert POLICY.decide(busy, Memory(), 0.0).replicas == 2


def test_without_any_capacity_the_busy_share_decides():
    busy = replace(CALM, done_per_s=0, busy_share=1.0, capacity_rows_per_s=0, replicas=2, target=2)
    assert POLICY.decide(busy, Memory(), 0.0).replicas == 3


def test_an_idle_version_sleeps_only_when_allowed_to():
    idle = replace(CALM, rows_per_s=0, done_per_s=0, busy_share=0)
    sleepy = replace(POLICY, min_replicas=0, idle_after_s=60)
    memory = sleepy.decide(idle, Memory(), 0.0).memory
    assert sleepy.decide(idle, memory, 59.0).replicas == 1
    assert sleepy.decide(idle, memory, 60.0).replicas == 0
    assert POLICY.decide(idle, memory, 600.0).replicas == 1


def test_one_request_ends_the_countdown_to_sleep():
    idle = replace(CALM, rows_per_s=0, done_per_s=0, busy_share=0)
    sleepy = replace(POLICY, min_replicas=0, idle_after_s=60)
    memory = sleepy.decide(idle, Memory(), 0.0).memory
    memory = sleepy.decide(replace(idle, rows_per_s=0.1), memory, 30.0).memory
    memory = sleepy.decide(idle, memory, 31.0).memory
    assert sleepy.decide(idle, memory, 65.0).replicas == 1


def test_a_sleeping_version_wakes_when_it_is_wanted():
    sleepy = replace(POLICY, min_replicas=0)
    assert sleepy.decide(Load(replicas=0, target=0), Memory(), 0.0).replicas == 0
    assert sleepy.decide(Load(replicas=0, target=0, wanted=True), Memory(), 0.0).replicas == 1
    assert sleepy.decide(Load(replicas=0, target=1, wanted=True), Memory(), 1.0).replicas == 1


def test_steady_load_at_the_edge_does_not_flap():
    rates = [139.0 if step % 2 else 141.0 for step in range(600)]  # two replicas carry exactly 140
    assert turns(played(POLICY, rates)) <= 1


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 900), st.floats(0, 0.3), st.integers(0, 2**32 - 1), st.sampled_from([0.5, 3.0, 15.0]))
def test_load_that_does_not_change_never_brings_a_replica_back(rate, noise, seed, start_s):
    """It may grow and shrink to what is needed once; then it stays, however the rate trembles."""
    import random

    draw = random.Random(seed)
    rates = [rate * (1 + noise * draw.uniform(-1, 1)) for _ in range(500)]
    assert turns(played(replace(POLICY, max_replicas=30), rates, start_s)) <= 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 900), st.integers(1, 120)), min_size=1, max_size=8))
def test_none_goes_within_the_hold_time_after_one_came(parts):
    targets = played(replace(POLICY, max_replicas=30), [rate for rate, steps in parts for _ in range(steps)])
    ups = [i for i in range(1, len(targets)) if targets[i] > targets[i - 1]]
    downs = [i for i in range(1, len(targets)) if targets[i] < targets[i - 1]]
    assert all((down - up) * 0.5 >= 30 - 0.5 for up in ups for down in downs if down > up)


@given(loads, st.integers(0, 3), st.integers(1, 6), st.floats(0, 1e4))
def test_the_bounds_always_hold(load, low, high, now_s):
    policy = replace(POLICY, min_replicas=min(low, high), max_replicas=high)
    assert policy.min_replicas <= policy.decide(load, Memory(), now_s).replicas <= high


@given(st.lists(loads, min_size=1, max_size=80))
def test_memory_stays_small(seen):
    memory = Memory()
    for step, load in enumerate(seen):
        memory = replace(POLICY, max_replicas=8).decide(load, memory, step * 2.0).memory
    assert len(memory.peaks) <= 100 and len(memory.rates) <= 24 and len(memory.ordered) <= 8
