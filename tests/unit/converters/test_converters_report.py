"""The page that a person looks at: complete, self-contained, and with nothing of the user's unescaped."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from converters.proof import plots
from converters.proof.parity import HISTOGRAM_DECADES, Parity, compare, tolerance_for
from converters.proof.report import POINTS, Cost, Report, render, sample_points, size_text, time_text

PROFILE = {
    "seconds_by_rows": {"1": 0.001, "2": 0.0015},
    "best_rows": 2,
    "load_s": 0.2,
    "rss_bytes": 3e7,
    "cpu_model": "A CPU",
    "threads": 1,
}


def parity(expected, got, **more):
    tolerance = tolerance_for("fp16")
    outputs = (compare("scores", [expected], [got], tolerance),)
    return {**Parity("torch", "fp16", tolerance, ({"inputs": "sample", "rows": 3},), outputs).to_json(), **more}


def page(found, points=None, costs=(Cost("fp16", 1000, PROFILE), Cost("source", 2000, {}))):
    return render(
        Report("m<1>.onnx as fp16", "x FP32", "the torch source", found, points or {}, costs, (("source", "a & b"),))
    )


def test_a_page_shows_verdict_measures_and_costs():
    expected = np.random.default_rng(0).standard_normal((3, 4))
    html = page(parity(expected, expected * 1.001), {"scores": sample_points([expected], [expected * 1.001])})
    for text in ("Near enough", "60.0 dB", "m&lt;1&gt;.onnx", "a &amp; b", "Size on disk", "cold load"):
        assert text in html
    assert html.count("<svg") == 5 and "<script" not in html and "http" not in html.replace("http-equiv", "")


def test_every_plot_is_well_formed():
    expected = np.random.default_rng(0).standard_normal((3, 4))
    html = page(parity(expected, expected * 1.001), {"scores": sample_points([expected], [expected])})
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)


def test_latency_is_drawn_of_whole_batches_and_of_a_row():
    """1 ms for one row and 1.5 ms for two: a batch takes longer, a row in it less."""
    html = page(parity(np.ones((3, 4)), np.ones((3, 4))))
    for title, milliseconds in (("Latency of a batch", "1.5"), ("Time per row", "0.75")):
        drawn = re.search(f"<h3>{title}</h3>(.*?)</svg>", html, re.DOTALL)[1]
        assert re.findall(r"<title>fp16, (\d): ([\d.]+)</title>", drawn) == [("1", "1"), ("2", milliseconds)]


def test_every_output_has_its_errors_drawn_or_is_named_with_the_reason():
    draw = np.random.default_rng(0)
    tolerance = tolerance_for("fp16")
    arrays = {"class": np.arange(5)} | {f"state_{i}": draw.standard_normal((3, 4)) for i in range(9)}
    outputs = tuple(compare(name, [array], [array], tolerance) for name, array in arrays.items())
    found = Parity("torch", "fp16", tolerance, ({"inputs": "sample", "rows": 3},), outputs).to_json()
    html = page(found, {name: sample_points([array], [array]) for name, array in arrays.items()})
    assert html.count(": errors</h3>") == 9 and html.count(": agreement (") == 8
    assert "No errors are drawn of class: " in html and "Whole numbers and text" in html
    assert "No agreement is drawn of state_7, state_8: only the first 8 outputs" in html
    ones = np.ones((3, 4))
    assert "drawn of" not in page(parity(ones, ones), {"scores": sample_points([ones], [ones])})


def test_a_page_says_which_device_was_measured():
    ones = parity(np.ones((3, 4)), np.ones((3, 4)))
    assert "Measured on A CPU, 1 thread" in page(ones)
    on_gpu = (Cost("engine", 1000, {**PROFILE, "gpu_model": "NVIDIA L4"}),)
    assert "Measured on NVIDIA L4 and A CPU, 1 thread" in page(ones, costs=on_gpu)


def test_a_line_of_another_model_is_named_and_has_its_own_colour():
    alone = page(parity(np.ones((3, 4)), np.ones((3, 4))))
    assert 'class="legend"' not in alone
    engine = (Cost("engine", 10, {}), Cost("onnx", 5, PROFILE))
    html = page(parity(np.ones((3, 4)), np.ones((3, 4)), executed=False), costs=engine)
    assert '<i class="key k1"></i>onnx' in html and 'class="s1 line"' in html and 'class="s0 line"' not in html


def test_a_failure_says_what_is_wrong():
    html = page(parity(np.ones((3, 4)), np.zeros((3, 4))))
    assert "Not near enough" in html and "scores: " in html


def test_an_engine_that_was_not_executed_is_not_called_near_enough():
    html = page(parity(np.ones((3, 4)), np.ones((3, 4)), executed=False))
    assert "Built, not executed here" in html and "Near enough" not in html
    assert "Answers of the ONNX file it was built from" in html


def test_a_metric_is_shown_before_and_after():
    found = {"metric": "accuracy", "output": "scores", "rows": 10, "source": 0.9, "converted": 0.8, "drop": 0.1}
    html = page(parity(np.ones((3, 4)), np.ones((3, 4)), evaluation={**found, "max_drop": 0.2}))
    assert "0.9000" in html and "0.8000" in html and "at most 0.2 is allowed" in html


def test_the_histogram_counts_every_element_once():
    expected = np.array([1.0, 1.0, 1.0, 1.0, 1.0])
    got = np.array([1.0, 1.0 + 1e-15, 1.05, 3.0, 1e9])
    found = compare("y", [expected], [got], tolerance_for("int8")).histogram
    assert sum(found) == 5 and found[0] == 1
    by_decade = dict(zip(HISTOGRAM_DECADES, found[1:], strict=True))
    assert by_decade[-10] == 1 and by_decade[-1] == 1 and by_decade[1] == 1 and by_decade[2] == 1


def test_agreement_shows_a_limited_number_of_finite_points():
    many = np.arange(10_000.0)
    assert len(sample_points([many], [many])[0]) == POINTS
    expected, got = sample_points([np.array([1.0, np.nan])], [np.array([1.0, 2.0])])
    assert (expected, got) == ([1.0], [1.0])
    assert sample_points([np.array(["a"])], [np.array(["a"])]) == ([], [])
    assert sample_points([np.zeros((2, 1))], [np.zeros((1, 2))]) == ([], [])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.00023), (-17.3, 12.1), (0, 4096), (5, 5)])
def test_ticks_are_round_and_enclose_the_values(low, high):
    ticks = plots.nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high * 0.999999 and 2 <= len(ticks) <= 8
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0])


def test_numbers_are_short():
    assert [plots.number(v) for v in (0, 2.0, 0.0000123, 1500, 0.25)] == ["0", "2", "1.23e-5", "1,500", "0.25"]
    assert (size_text(1.5e6), size_text(12)) == ("1.5 MB", "12 B")
    assert (time_text(0.0123), time_text(2e-9)) == ("12.3 ms", "2 ns")
