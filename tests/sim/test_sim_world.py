import numpy as np
import pytest

from cluster.costs import CostCurve
from cluster.errors import InvalidRequest
from cluster.policy.batch import BatchPolicy
from cluster.policy.scale import ScalePolicy
from cluster.policy.share import Claim, limits
from cluster.sim.outcome import Change, Objective, Outcome
from cluster.sim.path import PathSettings
from cluster.sim.reports import Series, Timing
from cluster.sim.scalers import Fixed, PolicyScaler
from cluster.sim.world import SimVersion, StartUp, simulate
from loadtest.arrivals import Constant, Poisson, Step

COSTS = CostCurve.of({1: 0.010, 4: 0.020, 16: 0.070})
CAPACITY = COSTS.rows_per_s(16)


def version(name="m", rate=60.0, seconds=60, pattern=None, **changes):
    due_s = (pattern or Poisson()).due(rate, seconds, np.random.default_rng(3))
    given = {"start_up": StartUp(2.0), "max_replicas": 8, **changes}
    return SimVersion(name, due_s, PathSettings(BatchPolicy(16, costs=COSTS)), Objective(0.25), **given)


def prism(most=8, **changes):
    return PolicyScaler(ScalePolicy(1, most, objective_s=0.25, **changes), CAPACITY)


def test_the_same_seed_gives_the_same_run():
    one, two = (simulate([(version(), prism())], 60, seed=5)["m"] for _ in range(2))
    assert one == two
    assert one != simulate([(version(), prism())], 60, seed=6)["m"]


def test_enough_replicas_keep_the_objective_and_cost_what_they_cost():
    found = simulate([(version(), Fixed(2))], 60)["m"]
    assert found.outside == () and found.failed == 0
    assert found.replica_seconds == pytest.approx(120, abs=1)


def test_too_few_replicas_are_outside_in_every_second_once_the_queue_has_grown():
    found = simulate([(version(rate=400.0), Fixed(1))], 60)["m"]
    assert set(range(5, 60)) <= set(found.outside)


def test_a_step_is_answered_within_its_start_up_and_a_few_seconds():
    found = simulate([(version(pattern=Step((1.0, 6.0)), rate=80.0), prism())], 60)["m"]
    after = [second for second in found.outside if second >= 30]
    assert after and max(after) < 30 + 2 + 5
    ups = [change for change in found.changes if change.at_s >= 30]
    assert ups[0].at_s < 31.5 and ups[0].reason.startswith("up")


def test_one_decision_orders_most_of_what_a_step_needs():
    found = simulate([(version(pattern=Step((1.0, 6.0)), rate=80.0), prism())], 60)["m"]
    soon = max(change.after for change in found.changes if 30 <= change.at_s < 32.5)
    assert soon >= 480 / CAPACITY


def test_steady_load_makes_no_changes_after_the_first_seconds():
    found = simulate([(version(rate=150.0, seconds=200), prism(down_after_s=20.0))], 200)["m"]
    assert [change for change in found.changes if change.at_s > 60] == []


def test_a_version_without_requests_sleeps_and_wakes():
    quiet = np.concatenate([Constant().due(20.0, 10.0, np.random.default_rng(0)), [70.0, 70.1]])
    asleep = SimVersion("m", quiet, PathSettings(BatchPolicy(16, costs=COSTS)), Objective(0.25), StartUp(2.0))
    found = simulate([(asleep, PolicyScaler(ScalePolicy(0, 4, idle_after_s=20.0), CAPACITY))], 90)["m"]
    assert found.instants[50].held == 0
    assert found.failed == 0 and found.instants[75].ready == 1


def test_what_does_not_fit_waits_for_a_slot():
    found = simulate([(version("a"), Fixed(3)), (version("b"), Fixed(3))], 30, slots=4)
    most = max(found["a"].instants[s].held + found["b"].instants[s].held for s in range(30))
    assert most == 4


def test_sharing_gives_the_more_important_version_what_it_needs():
    def sharing(wants):
        claims = {
            name: Claim(count, {"GPU": 1.0}, least=1, most=8, priority=1 if name == "first" else 0)
            for name, count in wants.items()
        }
        return {**dict.fromkeys(wants, 8), **limits(claims, {"GPU": 5})}

    load = [(version("first", 500.0), prism()), (version("second", 500.0), prism())]
    shared = simulate(load, 60, slots=5, sharing=sharing)
    assert shared["first"].instants[50].target >= 3
    assert shared["second"].instants[50].target <= 2
    assert len(shared["first"].outside) < len(shared["second"].outside)


def test_two_versions_of_one_name_are_refused():
    with pytest.raises(InvalidRequest, match="different names"):
        simulate([(version(), Fixed(1)), (version(), Fixed(1))], 1)


def test_a_mean_is_weighted_by_time_and_holds_the_last_value():
    series = Series(Timing(interval_s=0.5, look_back_s=2.0, delay_s=0.0))
    assert series.mean(0.0) is None
    for at_s, value in ((0.0, 10.0), (0.4, 20.0)):
        series.record((value,), at_s)
    series.pass_on(0.5)
    assert series.mean(0.5) is None  # it is under way
    series.pass_on(0.6)
    assert series.mean(1.0) == pytest.approx(((0.4 * 10 + 0.6 * 20) / 1.0,))


def test_a_slower_machine_is_noticed():
    given = version(rate=100.0)
    slow = SimVersion("m", given.due_s, PathSettings(given.path.batch, slowdown=3.0), given.objective)
    found = simulate([(slow, prism())], 60)["m"]
    assert found.instants[50].ready >= 100 / (CAPACITY / 3)


def test_a_change_of_direction_within_a_minute_is_a_flap():
    def changed(*steps):
        changes = tuple(Change(at_s, before, after) for at_s, before, after in steps)
        return Outcome(9, (), 0.0, changes, (), (), (), 0, 0, 0.0)

    assert changed((0, 1, 2), (30, 2, 1)).flaps == 1
    assert changed((0, 1, 2), (10, 2, 3), (100, 3, 1)).flaps == 0
