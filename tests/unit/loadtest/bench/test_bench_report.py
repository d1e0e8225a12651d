from dataclasses import replace
from io import StringIO

import numpy as np
from rich.console import Console

from loadtest.bench.accounting import Memory
from loadtest.bench.floor import FloorPoint
from loadtest.bench.report import cells_of, failure_lines, markdown, page, show, write_files
from loadtest.bench.result import BenchResult, Failure, Measurement, Point, Settings, Visit
from loadtest.bench.summary import summarise
from loadtest.measure import percentiles
from loadtest.result import this_machine


def measurement(contestant, rps, point=Point("raw", 64)):
    return Measurement(
        contestant=contestant,
        work="T",
        round=0,
        point=point,
        rps=rps,
        answers=100,
        failed=0,
        errors={},
        latency=percentiles(np.array([0.001, 0.002])),
        lag_p99_s=None,
        cpu_ms=0.031,
        idle_cpu_ms=0.002,
        cpu_ms_by_kind={"gateway": 0.021, "replica": 0.01},
        server_cores=1.0,
        generator_cores=0.5,
        other_share=0.02,
        stolen_share=0.0,
    )


RESULT = BenchResult(
    started="2000-01-01T00:00:00+00:00",
    machine=this_machine(),
    versions={"ray": "2.60.0"},
    settings=Settings("python -m loadtest.bench", ("prism", "other"), ("T",), 1, 5.0, 2.0, 0.6, (), 256),
    about={"prism": "it", "other": "the other", "T": "tiny"},
    ceiling_rps=60_000.0,
    ceiling_cpu_us=8.0,
    floor=(FloorPoint("T", 64, 1e6, 0.001, 0.001),),
    visits=(Visit("prism", "T", 0, 9.0, 0.1, {"ray": 0.1}, {"ray": Memory(3, 300_000_000, True)}, 256),),
    measurements=(
        measurement("prism", 40_000.0),
        measurement("prism", 900.0, Point("raw", 256, 900.0)),
        measurement("other", 300.0),
    ),
    failures=(Failure("absent", "", -1, "not installed"), Failure("other", "T", 1, "wrong | answer")),
)


def test_a_result_is_the_same_after_it_was_written_and_read(tmp_path):
    RESULT.write(tmp_path / "r.json")
    assert BenchResult.read(tmp_path / "r.json") == RESULT


def test_one_row_per_server_and_load():
    rows = cells_of(summarise(RESULT.measurements), "T")
    assert [row[:3] for row in rows] == [
        ["prism", "raw, c64", "40,000"],
        ["prism", "raw, open 900/s", "900"],
        ["other", "raw, c64", "300"],
    ]


def test_all_files_are_made_from_the_result(tmp_path):
    files = write_files(RESULT, tmp_path, "bench-x")
    assert [file.name for file in files] == ["bench-x.json", "bench-x.html", "RESULTS.md"]
    text = files[2].read_text()
    assert "`bench-x.json`" in text and "| prism | raw, c64 | 40,000 |" in text
    assert "met: T raw c64, requests/s: 40,000, at least 35,000" in text


def test_the_page_has_charts_and_names_what_was_left_out():
    html = page(RESULT).render()
    assert html.count("<svg") == 2
    assert "absent: not installed" in html


def test_a_result_without_measurements_still_has_a_report():
    empty = replace(RESULT, measurements=(), visits=(), floor=())
    assert "## Idle" in markdown(empty, "x.json")
    assert "<svg" not in page(empty).render()


def test_the_terminal_shows_targets_and_failures():
    console = Console(record=True, width=140, file=StringIO())
    show(RESULT, console)
    text = console.export_text()
    assert "met: T raw c64, CPU ms/request: 0.031, at most 0.035" in text
    assert failure_lines(RESULT)[1] == "other on T, round 2: wrong | answer"
