import numpy as np
import pytest

from loadtest.bench.contestants import CONTESTANTS
from loadtest.bench.generator import LoadFigures
from loadtest.bench.result import Point
from loadtest.bench.visits import BestRates, Cost, Schedule, measurement, points
from loadtest.bench.work import WORKS, Prepared
from loadtest.measure import percentiles


def prepared(name, tmp_path):
    nothing = np.zeros((1, 1), np.float32)
    return Prepared(WORKS[name], tmp_path, tmp_path, nothing, nothing)


def figures(answers=1000, statuses=None, errors=None):
    return LoadFigures(
        ok=answers,
        rps=answers / 5,
        answers=answers,
        statuses=statuses or {"200": answers},
        errors=errors or {},
        latency=percentiles(np.array([0.001])),
        lag=None,
        elapsed_s=5.3,
        cpu_s=1.0,
        samples=(),
    )


def measured(made=None, **cost):
    values = {"used_s": {"gateway": 3.0, "replica": 1.0}, "idle_cores": 0.1, "took_s": 5.0, "busy_s": 6.0}
    return measurement(
        "prism", "T", 0, Point("raw", 64), made or figures(), Cost(**{**values, "stolen_s": 0.0, "cores": 2, **cost})
    )


def test_cpu_is_divided_by_all_answers_and_by_process():
    found = measured()
    assert found.cpu_ms == pytest.approx(4.0)
    assert found.cpu_ms_by_kind == pytest.approx({"gateway": 3.0, "replica": 1.0})
    assert (found.server_cores, found.generator_cores) == pytest.approx((0.8, 0.2))


def test_the_idle_share_is_a_part_of_the_cpu_never_more():
    assert measured().idle_cpu_ms == pytest.approx(0.5)
    assert measured(idle_cores=50.0).idle_cpu_ms == pytest.approx(4.0)


def test_noise_is_what_neither_server_nor_generator_used():
    assert measured().other_share == pytest.approx(0.1)
    assert measured(busy_s=4.9).other_share == 0.0


def test_answers_that_are_not_2xx_are_failures_by_status():
    found = measured(figures(statuses={"200": 990, "429": 10}, errors={"closed": 2}))
    assert found.failed == 12
    assert found.errors == {"429": 10, "closed": 2}


def test_a_load_without_answers_has_figures():
    assert measured(figures(answers=0, statuses={"200": 0}, errors={"unanswered": 64})).failed == 64


def test_other_formats_are_measured_with_the_most_connections_only(tmp_path):
    found = points(prepared("T", tmp_path), CONTESTANTS["prism"], Schedule())
    assert found == (
        *(Point("raw", count) for count in (1, 32, 64)),
        Point("binary", 64),
        Point("json", 64),
    )
    assert points(prepared("T", tmp_path), CONTESTANTS["starlette"], Schedule(connections=(8,))) == (Point("raw", 8),)
    assert points(prepared("E", tmp_path), CONTESTANTS["prism"], Schedule(formats=("json",))) == ()


def test_every_round_asks_the_rate_that_the_first_one_found():
    best = BestRates()
    made = measured()
    assert best.of("prism", "T", [made]) == made.rps
    assert best.of("prism", "T", []) == made.rps
    assert best.of("mosec", "T", []) == 0.0
