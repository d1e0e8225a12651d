from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from pytest import approx, raises

from deployments.exposition import exposition
from deployments.metrics import ROWS, SECONDS, Histogram, Metrics
from deployments.readings import NodeReading, Reading, pack, unpack


def samples(*gateways: Metrics, silent: int = 0) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """A scrape of a node: every gateway but the first has told what it counted through its socket."""
    first, *others = [Reading.of(metrics) for metrics in gateways]
    node = NodeReading((first, *(unpack(pack(other)) for other in others)), silent)
    about = {name: about for name, (about, _) in gateways[0].gauges.items()}
    text = exposition(node, about).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


LABELS = (("arm", "stable"), ("gateway", "g1"), ("model", "m"), ("version", "2"))


def test_a_scrape_says_what_was_answered() -> None:
    metrics = Metrics("g1")
    cell = metrics.cell("m", "2", "stable")
    cell.answered(10.0, 0.003, 0.001, 0.002, rows=1, batch_rows=4)
    cell.failed(429, 0.0001)
    metrics.unknown.failed(404, 0.0)
    metrics.gauge("prism_queue_rows", "Rows that wait", lambda: [("m", "2", "stable", 7)])
    seen = samples(metrics)
    assert seen["prism_request_seconds_count", LABELS] == 1
    assert seen["prism_request_seconds_sum", LABELS] == approx(0.003)
    assert seen["prism_request_seconds_bucket", (*LABELS[:2], ("le", "0.003"), *LABELS[2:])] == 1
    assert seen["prism_request_seconds_bucket", (*LABELS[:2], ("le", "0.002"), *LABELS[2:])] == 0
    assert seen["prism_requests_total", (*LABELS[:3], ("status", "429"), LABELS[3])] == 1
    assert (
        seen[
            "prism_requests_total", (("arm", ""), ("gateway", "g1"), ("model", ""), ("status", "404"), ("version", ""))
        ]
        == 1
    )
    assert seen["prism_queue_rows", LABELS] == 7
    assert seen["prism_gateway_info", (("gateway", "g1"),)] == 1


def test_requests_of_one_batch_count_as_one_batch() -> None:
    metrics = Metrics()
    cell = metrics.cell("m", "2")
    for rows in (1, 2, 5):
        cell.answered(1.0, 0.001, 0.0, 0.001, rows=rows, batch_rows=8)
    assert cell.batch.count == approx(1) and cell.batch.total == 8 and cell.rows == 8


def test_cells_of_versions_that_are_gone_are_forgotten() -> None:
    metrics = Metrics()
    metrics.cell("m", "1", "stable"), metrics.cell("m", "1"), metrics.cell("m", "2")
    metrics.keep({("m", "2")})
    assert list(metrics.cells) == [("m", "2", "")]


def test_bounds_ascend() -> None:
    for bounds in (SECONDS, ROWS):
        assert list(bounds) == sorted(set(bounds))


def test_every_gateway_of_a_node_has_series_of_its_own_and_they_add_up() -> None:
    first, second = Metrics("g1"), Metrics("g2")
    for metrics, answers in ((first, 3), (second, 5)):
        for _ in range(answers):
            metrics.cell("m", "2", "stable").answered(10.0, 0.003, 0.001, 0.002, rows=1, batch_rows=1)
        metrics.gauge("prism_queue_rows", "Rows that wait", lambda n=answers: [("m", "2", "stable", n)])
    second.unknown.failed(404, 0.5)
    seen = samples(first, second, silent=1)
    theirs = (LABELS[0], ("gateway", "g2"), *LABELS[2:])
    assert (seen["prism_request_seconds_count", LABELS], seen["prism_request_seconds_count", theirs]) == (3, 5)
    assert seen["prism_request_seconds_bucket", (*theirs[:2], ("le", "0.003"), *theirs[2:])] == 5
    assert (seen["prism_queue_rows", LABELS], seen["prism_queue_rows", theirs]) == (3, 5)
    assert sum(value for (name, _), value in seen.items() if name == "prism_requests_total") == 9
    assert seen["prism_gateway_info", (("gateway", "g2"),)] == 1
    assert seen["prism_gateways_silent", ()] == 1


def test_a_reading_says_the_same_at_the_other_end() -> None:
    metrics = Metrics("g1")
    cell = metrics.cell("m", "2", "canary")
    cell.answered(10.0, 0.003, 0.001, 0.002, rows=3, batch_rows=4)
    cell.failed(429, 0.25)
    told = unpack(pack(Reading.of(metrics)))
    other = told.cells["m", "2", "canary"]
    assert (other.rows, other.status, other.failed_s, other.last_s) == (3, {200: 1, 429: 1}, 0.25, 10.0)
    assert other.request.cumulative() == cell.request.cumulative() and other.batch.total == cell.batch.total
    node = NodeReading((Reading.of(metrics), told))
    assert sum(each.rows for each in node.of_model("m")["2"]) == 6 and node.of_model("m", "1") == {}


def test_what_is_no_reading_is_refused() -> None:
    for raw in (b"", b"\x93", pack(Reading.of(Metrics("g")))[:-1]):
        with raises(ValueError):
            unpack(raw)
    with raises(ValueError, match="expected 4, got 2"):
        Histogram((1, 2, 3), [0.0, 1.0])
