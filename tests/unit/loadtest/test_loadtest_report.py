import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import InvalidRequest
from loadtest.compare import compare, comparison_page, ratio_intervals
from loadtest.page import KeyFigure, Page, Picture
from loadtest.plan import plan
from loadtest.plots import bars, histogram, lines
from loadtest.report import page, write_files
from loadtest.result import LoadResult
from loadtest.runs import Recording, summarize
from loadtest.samples import Outcome, Samples
from loadtest.scenario import scenario_from
from loadtest.server_metrics import Snapshot

SCENARIO = scenario_from(
    {
        "rate": 100,
        "warmup_s": 1,
        "phases": [{"name": "low", "duration_s": 5}, {"name": "<high>", "times": 2, "duration_s": 5}],
        "objective": "p99<50ms",
        "targets": [{"model": "m"}],
    },
    "test",
    Path("."),
)


def result(scale=1.0, seed=1):
    """A run as if every request had been answered in about 10 ms times `scale`."""
    prepared = plan(
        SCENARIO, "http://127.0.0.1:1", lambda path: {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}
    )
    due_s = prepared.schedule.due_s
    rng = np.random.default_rng(seed)
    count = len(due_s)
    samples = Samples(
        due_s=due_s,
        sent_s=due_s + 0.001,
        done_s=due_s + 0.001 + rng.gamma(4, 0.0025 * scale, count),
        outcome=np.full(count, Outcome.OK, dtype=np.int8),
        version=np.where(np.arange(count) % 10, 1, 2).astype(np.int16),
        call=np.zeros(count, dtype=np.int32),
        versions=("", "1", "2"),
    )
    snapshots = tuple(
        Snapshot(1000.0 + t, "g", {("prism_replicas", (("model", "m"), ("version", "1"))): 1.0 + t // 4})
        for t in range(11)
    )
    recording = Recording(samples, 1000.0, ((0.1,) * 11,), 0, snapshots, None)
    return summarize(SCENARIO, prepared, recording, "2026-01-01T00:00:00+00:00"), samples


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def tags(html):
    parser = Tags()
    parser.feed(html)
    return parser.found


def assert_self_contained(html):
    for tag, attrs in tags(html):
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
    assert not re.search(r"url\((?!#)|@import", html)


def test_the_report_opens_without_a_network_and_holds_its_charts():
    html = page(result()[0]).render()
    assert_self_contained(html)
    assert sum(tag == "svg" for tag, _ in tags(html)) == 3
    for words in ("Over time", "share per version", "replicas", "Valid run, objective kept", "seed", "goodput"):
        assert words in html


def test_names_from_scenarios_are_escaped():
    html = page(result()[0]).render()
    assert "<high>" not in html and "&lt;high&gt;" in html


def test_figures_of_phases_add_up_to_the_whole():
    found, samples = result()
    assert found.verdict.status == "ok"
    assert sum(p.counts.offered for p in found.phases) == found.total.counts.offered < len(samples)
    assert found.phases[1].offered_rps == pytest.approx(200, rel=0.2)
    assert found.total.counts.versions["1"] / found.total.counts.answered == pytest.approx(0.9, abs=0.02)
    assert (found.phases[0].server.replicas_min, found.phases[1].server.replicas_max) == (1, 3)
    assert found.load.gap_cv == pytest.approx(1.0, abs=0.3)


def test_a_result_is_the_same_after_it_was_written_and_read(tmp_path):
    found, samples = result()
    written = write_files(found, samples, tmp_path)
    assert LoadResult.read(tmp_path / "result.json") == written
    assert set(written.files) == {"report", "json", "phases", "seconds", "samples"}
    assert (tmp_path / "phases.csv").read_text().startswith("phase,start_s,duration_s,offered,answered,failed,dropped")
    assert len((tmp_path / "seconds.csv").read_text().splitlines()) == 1 + len(written.timeline.t_s)


def test_something_else_than_a_result_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="not a load test result"):
        LoadResult.read(tmp_path / "x.json")


def test_a_run_stopped_early_is_judged_on_what_it_measured():
    found, samples = result()
    prepared = plan(
        SCENARIO, "http://h", lambda path: {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}
    )
    early = samples.only(samples.due_s < 4.0)
    stopped = summarize(SCENARIO, prepared, Recording(early, 1000.0, ((0.1,),), 0, (), 4.0), found.started)
    assert [p.name for p in stopped.phases] == ["low"] and stopped.phases[0].duration_s == pytest.approx(3.0)


def test_comparing_tells_a_slowdown_from_noise(tmp_path):
    for name, scale, seed in (("a", 1.0, 1), ("b", 1.0, 2), ("c", 1.5, 3)):
        write_files(*result(scale, seed), tmp_path / name)
    same = {d.measure: d for d in compare(tmp_path / "a/result.json", tmp_path / "b/result.json").differences}
    slower = compare(tmp_path / "a/result.json", tmp_path / "c/result.json")
    by_name = {d.measure: d for d in slower.differences}
    assert same["p50"].judgement == "noise"
    assert by_name["p50"].judgement == "B is higher" and by_name["p50"].ratio == pytest.approx(1.45, abs=0.1)
    assert slower.warnings == ()
    assert_self_contained(comparison_page(slower).render())


def test_intervals_hold_the_true_ratio():
    rng = np.random.default_rng(0)
    a = [rng.exponential(1.0, 50) for _ in range(60)]
    b = [rng.exponential(2.0, 50) for _ in range(60)]
    low, high = ratio_intervals(a, b)["mean"]
    assert low < 2.0 < high and high - low < 0.5


def test_a_page_escapes_text_and_embeds_pictures():
    made = Page("<b>", "a & b")
    made.section("x", "<script>")
    made.figures([KeyFigure("<i>", "1")])
    made.table(["<c>"], [["<d>"], [1.5], [None]])
    made.pictures([Picture(b"\x89PNG", "image/png", "'quoted'")])
    made.verdict("good", "<h>", ["<l>"])
    made.chart(bars(["1", "2"], {"intended": [0.9, 0.1], "seen": [0.89, 0.11]}, percent=True))
    made.chart(lines([1, 2, 3], {"a": [1.0, None, 3.0]}, limit=2.0))
    made.chart(histogram({"1": 5, "more": 2}))
    html = made.render()
    assert_self_contained(html)
    assert "<script>" not in html and "<d>" not in html and "data:image/png;base64,iVBORw" in html
