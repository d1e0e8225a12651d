from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from pytest import approx

from deployments.metrics import ROWS, SECONDS, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.scrape().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


LABELS = (("arm", "stable"), ("model", "m"), ("version", "2"))


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
    assert seen["prism_request_seconds_bucket", (*LABELS[:1], ("le", "0.003"), *LABELS[1:])] == 1
    assert seen["prism_request_seconds_bucket", (*LABELS[:1], ("le", "0.002"), *LABELS[1:])] == 0
    assert seen["prism_requests_total", (*LABELS[:2], ("status", "429"), LABELS[2])] == 1
    assert seen["prism_requests_total", (("arm", ""), ("model", ""), ("status", "404"), ("version", ""))] == 1
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
