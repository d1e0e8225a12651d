"""What a profile says of a model."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from cluster.artifact import PROFILE
from cluster.costs import CostCurve
from converters.proof import profile
from converters.proof.profile import costs_here, counts, cpu_model, gpu_model, measure, measured_alike, merge, settle
from onnx_models import mlp_artifact


class Machine:
    """A runtime that takes `seconds(rows)` of a clock that nothing else moves."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.now_s = 100.0
        self.rows = []

    def perf_counter(self):
        return self.now_s

    def run(self, inputs):
        self.rows.append(len(inputs[0]))
        self.now_s += self.seconds(len(inputs[0]))
        return inputs


@pytest.fixture
def timed(monkeypatch):
    def machine(seconds):
        made = Machine(seconds)
        monkeypatch.setattr(profile.time, "perf_counter", made.perf_counter)
        return made

    return machine


def profiled(folder, max_rows=8, **entry):
    artifact = mlp_artifact(folder, max_rows=max_rows)
    (artifact.path / PROFILE).write_text(json.dumps({"devices": {"cpu": entry} if entry else {}}))
    return artifact


EXAMPLE = (np.zeros((1, 4), np.float32),)


def test_powers_of_two_and_the_largest_batch_are_measured():
    assert counts(1) == (1,)
    assert counts(20) == (1, 2, 4, 8, 16, 20)
    assert counts(64) == (1, 2, 4, 8, 16, 32, 64)


@given(st.dictionaries(st.integers(1, 512), st.floats(1e-6, 10.0), min_size=1))
def test_a_settled_curve_never_falls_and_never_rises_above_what_was_measured(points):
    settled = settle(points)
    seconds = list(settled.values())
    assert seconds == sorted(seconds)
    assert all(settled[rows] <= points[rows] for rows in points)


def test_of_two_measurements_the_faster_points_are_kept():
    first = {"seconds_by_rows": {"1": 0.01, "2": 0.02, "4": 0.08}, "load_s": 2.0, "first_call_s": 0.1, "threads": 1}
    second = {"seconds_by_rows": {"1": 0.03, "2": 0.015}, "load_s": 1.0, "first_call_s": 0.2, "threads": 1}
    found = merge(first, second)
    assert found["seconds_by_rows"] == {"1": 0.01, "2": 0.015, "4": 0.08}
    assert (found["load_s"], found["first_call_s"], found["threads"], found["best_rows"]) == (1.0, 0.1, 1, 2)


def test_a_measured_artifact_has_a_curve_up_to_its_largest_batch(tmp_path):
    artifact = mlp_artifact(tmp_path, max_rows=4)
    found = measure(artifact.path, threads=1, budget_s=20.0)
    curve = CostCurve.of({int(rows): s for rows, s in found["seconds_by_rows"].items()})
    assert curve.rows == (1, 2, 4)
    assert 0 < curve.run_s(1) < 0.1
    assert found["best_rows"] in (1, 2, 4) and found["load_s"] > 0 and found["threads"] == 1


@pytest.mark.parametrize(("told", "expected"), [([500, 800], 300), ([500, 400], 0), ([None, None], None)])
def test_a_profile_of_a_gpu_says_what_it_took_there(tmp_path, monkeypatch, told, expected):
    artifact = mlp_artifact(tmp_path, max_rows=2)
    used, opened = iter(told), profile.open_runtime
    monkeypatch.setattr(profile, "used_bytes", lambda: next(used))
    monkeypatch.setattr(profile, "open_runtime", lambda artifact, threads, accelerator: opened(artifact))
    assert measure(artifact.path, 1, 0.05, "gpu").get("gpu_bytes") == expected


def test_a_replica_on_the_machine_of_the_profile_measures_nothing(tmp_path, timed):
    machine = timed(lambda rows: 0.001)
    artifact = profiled(tmp_path, seconds_by_rows={"1": 0.5}, threads=2, cpu_model=cpu_model())
    assert costs_here(machine, artifact, EXAMPLE, "cpu", 2) == CostCurve.of({1: 0.5})
    assert machine.rows == []


@pytest.mark.parametrize("entry", [{}, {"threads": 1}, {"cpu_model": "another"}])
def test_a_replica_elsewhere_goes_by_what_it_measures(tmp_path, timed, entry):
    machine = timed(lambda rows: 0.001 + 0.0005 * rows)
    known = {"seconds_by_rows": {"1": 0.5, "8": 4.0}, "threads": 2, "cpu_model": cpu_model(), **entry}
    found = costs_here(machine, profiled(tmp_path, **(known if entry else {})), EXAMPLE, "cpu", 2)
    assert found.rows == (1, 2, 4, 8)
    assert found.seconds == approx((0.0015, 0.002, 0.003, 0.005))


def test_the_first_run_of_a_size_and_the_slow_ones_do_not_count(tmp_path, timed):
    seen = {}

    def seconds(rows):
        seen[rows] = seen.get(rows, 0) + 1
        return {1: 0.050, 3: 0.001}.get(seen[rows], 0.004)

    found = costs_here(timed(seconds), profiled(tmp_path, max_rows=2), EXAMPLE, "cpu", 1)
    assert found.seconds == approx((0.001, 0.001))


@pytest.mark.parametrize("row_s", [1e-5, 0.01, 0.1, 0.4, 3.0])
def test_measuring_takes_about_its_budget_and_one_row_at_most_twice_that(tmp_path, timed, row_s):
    machine = timed(lambda rows: row_s * rows)
    costs_here(machine, profiled(tmp_path, max_rows=64), EXAMPLE, "cpu", 1, budget_s=1.0)
    assert machine.now_s - 100.0 <= max(1.6, row_s) + 1e-9


def test_of_a_slow_model_the_published_curve_is_scaled(tmp_path, timed):
    artifact = profiled(tmp_path, seconds_by_rows={"1": 1.0, "8": 2.0}, threads=1, cpu_model="another")
    found = costs_here(timed(lambda rows: 3.0 * rows), artifact, EXAMPLE, "cpu", 1, budget_s=1.0)
    assert found == CostCurve.of({1: 3.0, 8: 6.0})


def test_a_size_that_does_not_fit_the_device_ends_the_curve_and_not_the_replica(tmp_path, timed):
    def seconds(rows):
        if rows > 4:
            raise MemoryError("no room for 8 rows")
        return 0.001 * rows

    found = costs_here(timed(seconds), profiled(tmp_path), EXAMPLE, "cpu", 1)
    assert found.rows == (1, 2, 4)


def test_a_gpu_is_known_by_its_name_and_one_without_a_name_is_like_no_other(tmp_path, monkeypatch):
    (tmp_path / "0000:01").mkdir()
    (tmp_path / "0000:01" / "information").write_text("Model: \t NVIDIA L4\nIRQ: 3\n")
    assert gpu_model(tmp_path) == "NVIDIA L4"
    assert gpu_model(tmp_path / "none") == ""
    for name, alike in (("NVIDIA L4", True), ("NVIDIA A10", False), ("", False)):
        monkeypatch.setattr(profile, "gpu_model", lambda name=name: name)
        assert measured_alike({"gpu_model": "NVIDIA L4", "threads": 9}, "gpu", 1) is alike
