import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from cluster.costs import CostCurve
from cluster.policy.batch import BatchPolicy
from cluster.sim.outcome import Objective
from cluster.sim.path import PathSettings
from cluster.sim.world import SimVersion, StartUp, simulate
from loadtest.arrivals import Constant, Step
from loadtest.ray_scaling import RayScaler, RaySettings
from loadtest.scaling import main
from loadtest.scaling_report import Verdict, verdicts, worth_saying
from loadtest.scaling_scenes import PATTERNS, Scene, figures, play

COSTS = CostCurve.of({1: 0.050})


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray's, about metrics_interval_s
        yield


def ray(pattern, rate, seconds, **changes):
    due_s = pattern.due(rate, seconds, np.random.default_rng(3))
    version = SimVersion(
        "m", due_s, PathSettings(BatchPolicy(1, costs=COSTS), noise=0.0), Objective(0.25), StartUp(1.0), 1, 6
    )
    return simulate([(version, RayScaler(RaySettings(**changes), 6))], seconds)["m"]


def test_rays_default_goes_up_only_after_its_delay():
    found = ray(Step((0.0, 1.0)), 60.0, 120)
    first = found.changes[0]
    assert first.after > 1 and first.at_s >= 60 + 30


def test_rays_default_does_not_come_down_within_ten_minutes():
    found = ray(Step((1.0, 0.05, 0.05, 0.05)), 60.0, 400)
    assert found.changes and all(change.after > change.before for change in found.changes)


def test_rays_policy_follows_its_settings():
    found = ray(Step((0.0, 1.0, 0.0)), 60.0, 120, upscale_delay_s=0, look_back_period_s=2, metrics_interval_s=0.5,
                downscale_delay_s=10)  # fmt: skip
    ups = [change for change in found.changes if change.after > change.before]
    downs = [change for change in found.changes if change.after < change.before]
    assert 40 < ups[0].at_s < 43
    assert downs and downs[0].at_s < 100


def test_rays_policy_keeps_as_many_as_its_target_says():
    found = ray(Constant(), 30.0, 300, target_ongoing_requests=1.0, downscale_delay_s=5, look_back_period_s=2,
                metrics_interval_s=0.5)  # fmt: skip
    ongoing = 30 * 0.051
    assert found.instants[-1].ready in (int(ongoing), int(ongoing) + 1)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_can_be_played_by_everybody(pattern):
    for contestant in ("prism", "ray", "ray-tuned", "prompt"):
        found = play(Scene(pattern, rate=30.0, seconds=20), contestant, seed=1)
        assert found.requests > 0 and found.seconds == 20


def test_a_step_costs_half_the_seconds_outside_at_fewer_replica_seconds():
    scene = Scene("step", rate=60.0, seconds=240)
    prism, default = play(scene, "prism", 4), play(scene, "ray", 4)
    assert 2 * len(prism.outside) <= len(default.outside)
    assert prism.replica_seconds <= default.replica_seconds


def test_whoever_keeps_nothing_to_spare_pays_for_a_step_with_the_start_up_at_least():
    scene = Scene("step", rate=100.0, start_s=10.0, seconds=300)
    bound = play(scene, "prompt", 4)
    assert 6 <= len(bound.outside) <= 14
    assert all(100 <= second < 115 for second in bound.outside)
    assert len(play(scene, "prism", 4).outside) < len(bound.outside)  # it has a second replica


def test_a_pattern_on_its_own_is_judged_too_and_said_if_missed():
    run = replace(play(Scene("step", 30.0, seconds=2), "prism", 1), replica_seconds=9.0)
    found = [
        figures(Scene(pattern), name, [1], [replace(run, outside=outside)])
        for pattern, name, outside in (
            ("step", "prism", (1, 2)), ("step", "ray", (1, 2, 3)), ("ramp", "prism", ()), ("ramp", "ray", (1, 2, 3)),
        )
    ]  # fmt: skip
    judged = verdicts(found)
    assert [(v.pattern, v.met) for v in judged] == [("", True), ("step", False), ("ramp", True)]
    assert [v.pattern for v in worth_saying(judged)] == ["", "step"]
    assert "MISSED on step alone" in str(judged[1])


def test_the_verdict_is_missed_by_one_second_or_one_replica_second():
    assert Verdict(100.0, 5.0, 10, 20, 99.0, 99.0).met
    assert not Verdict(100.0, 5.0, 11, 20, 99.0, 99.0).met
    assert not Verdict(100.0, 5.0, 10, 20, 99.1, 99.0).met


def test_the_command_prints_a_table_and_writes_a_page(tmp_path):
    options = ["--patterns", "step", "--seeds", "1", "--start", "5", "--rate", "2,30", "--seconds", "30", "--jobs", "1"]
    done = CliRunner().invoke(main, [*options, "--out", str(tmp_path)])
    assert "Ray Serve's default" in done.output, done.output
    whole = json.loads((tmp_path / "scaling-simulated.json").read_text())
    assert [f["contestant"] for f in whole["figures"]] == 2 * ["prism", "ray", "ray-tuned", "prompt"]
    first, second = ({v["met"] for v in whole["verdicts"] if v["rate"] == rate} for rate in (2, 30))
    assert (first, second) == ({True}, {False}) and done.exit_code == 0  # the second rate decides nothing
    assert "<svg" in (tmp_path / "scaling-simulated.html").read_text()


def test_an_unknown_pattern_is_named(tmp_path):
    done = CliRunner().invoke(main, ["--patterns", "flood", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "flood" in done.output
