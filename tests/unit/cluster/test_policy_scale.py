from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.scale import Load, Memory, ScalePolicy

POLICY = ScalePolicy(min_replicas=1, max_replicas=4, target_utilisation=0.7, down_after_s=30)
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
    wanted=st.booleans(),
)


def test_a_step_in_load_is_answered_at_once():
    assert POLICY.decide(replace(CALM, rows_per_s=200), Memory(), 0.0).replicas == 3


def test_a_queue_asks_for_replicas_even_without_arrivals():
    assert POLICY.decide(replace(CALM, rows_per_s=0, queue_rows=1000), Memory(), 0.0).replicas == 4


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


def test_a_peak_within_the_window_keeps_its_replicas():
    memory = POLICY.decide(replace(CALM, replicas=4, target=4, rows_per_s=10), Memory(), 0.0).memory
    memory = POLICY.decide(replace(CALM, replicas=4, target=4, rows_per_s=150), memory, 15.0).memory
    assert POLICY.decide(replace(CALM, replicas=4, target=4, rows_per_s=10), memory, 31.0).replicas == 3


def test_a_measured_rate_corrects_an_optimistic_profile():
    busy = replace(CALM, rows_per_s=45, done_per_s=45, busy_share=0.9)
    assert POLICY.capacity(busy) == 50
    assert POLICY.decide(busy, Memory(), 0.0).replicas == 2


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


def test_steady_load_at_the_edge_does_not_flap():
    memory, target, changes = Memory(), 1, 0
    for step in range(600):
        rate = 139 if step % 2 else 141  # two replicas carry exactly 140
        load = replace(CALM, replicas=target, target=target, rows_per_s=rate)
        verdict = POLICY.decide(load, memory, float(step))
        memory = verdict.memory
        changes += verdict.replicas != target
        target = verdict.replicas
    assert changes <= 2


@given(loads, st.integers(0, 3), st.integers(1, 6), st.floats(0, 1e4))
def test_the_bounds_always_hold(load, low, high, now_s):
    policy = replace(POLICY, min_replicas=min(low, high), max_replicas=high)
    assert policy.min_replicas <= policy.decide(load, Memory(), now_s).replicas <= high
