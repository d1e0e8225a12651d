"""Reports as a browser shows them."""

import pytest
from test_loadtest_report import result

from browser import look_at
from loadtest.compare import compare, comparison_page
from loadtest.page import Page
from loadtest.plots import bars
from loadtest.report import write_files


def assert_it_stands_alone(seen):
    assert seen.errors == [] and seen.log == ""
    assert seen.asked == []
    assert seen.width <= 1200  # nothing sticks out to the side


def assert_charts_are_drawn(seen, count):
    assert len(seen.charts) == count
    for chart in seen.charts:
        width, height = chart["size"]
        assert width > 400 and height > 150 and chart["drawn"] > 12


def test_a_report_opens_in_a_browser_with_all_its_charts(tmp_path):
    found, samples = result()
    write_files(found, samples, tmp_path)
    seen = look_at((tmp_path / "report.html").read_text())
    assert_it_stands_alone(seen)
    assert_charts_are_drawn(seen, 3)
    over_time, tail, by_rate = (chart["text"] for chart in seen.charts)
    for words in ("requests a second", "latency, ms", "requests open", "replicas", "share per version", "objective"):
        assert words in over_time
    assert "p99.9" in tail and "share of answers slower" in tail and "objective" in tail
    assert "offered, requests a second" in by_rate and "objective" in by_rate
    for words in ("Valid run, objective kept", "goodput", "seed", "<high>"):
        assert words in seen.text


def test_a_comparison_opens_in_a_browser(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write_files(*result(seed=seed), tmp_path / name)
    found = comparison_page(compare(tmp_path / "a/result.json", tmp_path / "b/result.json"))
    seen = look_at(found.render())
    assert_it_stands_alone(seen)
    assert_charts_are_drawn(seen, 1)
    assert "noise" in seen.text


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        ("<img src='http://example.invalid/a.png'>", "asked"),
        ("<script>undefinedFunction()</script>", "errors"),
    ],
)
def test_a_page_that_needs_a_network_or_fails_is_told_apart(spoil, what):
    made = Page("x")
    made.chart(bars(["1"], {"a": [1]}))
    made.chart(spoil)
    assert getattr(look_at(made.render()), what)


def test_an_empty_chart_is_told_apart():
    made = Page("x")
    made.chart("<svg width='600' height='200'></svg>")
    with pytest.raises(AssertionError):
        assert_charts_are_drawn(look_at(made.render()), 1)
