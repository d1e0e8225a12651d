from pytest import approx

from deployments.startup import BUILD, FETCH, LOAD, PROCESS, Start, Stopwatch


def watched():
    watch = Stopwatch(process_started_s=100.0)
    watch.lap(PROCESS, 100.7)
    watch.lap(FETCH, 101.0)
    watch.lap(LOAD, 103.0)
    return watch


def test_the_steps_add_up_to_the_whole_start():
    start = watched().finished()
    assert start.steps == approx({PROCESS: 0.7, FETCH: 0.3, LOAD: 2.0})
    assert start.total_s == approx(3.0) and start.ready_s == 103.0
    assert str(start) == "started in 3.00 s: process 0.70, fetch 0.30, load 2.00"


def test_a_start_survives_the_way_to_a_gateway():
    start = watched().finished()
    assert Start.decode(start.encode()) == start


def test_what_another_release_says_is_not_misread():
    assert Start.decode("no json") is None
    assert Start.decode('{"steps": 3}') is None


def test_a_clock_that_was_set_back_makes_no_negative_step():
    watch = Stopwatch(process_started_s=100.0)
    watch.lap(LOAD, 98.0)
    assert all(seconds >= 0 for seconds in watch.finished().steps.values())


def test_what_was_built_is_shown_apart_and_not_expected_of_the_next_replica():
    watch = Stopwatch(100.0)
    watch.lap("process", 102.0)
    watch.lap("load", 112.0)
    watch.split("load", BUILD, 9.0)
    start = watch.finished()
    assert start.steps == {"process": 2.0, "load": 1.0, "build": 9.0}
    assert (start.total_s, start.again_s) == (12.0, 3.0)


def test_a_start_without_building_has_no_such_step_and_no_more_is_split_than_there_was():
    watch = Stopwatch(0.0)
    watch.lap("load", 2.0)
    watch.split("load", BUILD, 0.0)
    assert watch.finished().steps == {"load": 2.0}
    watch.split("load", BUILD, 5.0)
    assert watch.finished().steps == {"load": 0.0, "build": 2.0}
