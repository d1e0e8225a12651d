"""The Grafana dashboard that ships, held against what a gateway really exports."""

import asyncio
import json
import re
import urllib.request
from pathlib import Path

import pytest
from gateway_fakes import FakeRoutes, serving
from prometheus_client.parser import text_string_to_metric_families

from cluster.settings import Settings
from cluster.store.memory import MemoryStore
from deployments.gateway.app import build_app
from deployments.metrics import Metrics

DASHBOARD = json.loads((Path(__file__).parents[3] / "config/grafana/prism.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
QUERIES += [each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]


@pytest.fixture
async def exported():
    """Sample name -> names of its labels, after one answer and one error of `m`."""
    routes, metrics = FakeRoutes(), Metrics("g1")
    cell = metrics.cell("m", "1", "stable")
    cell.answered(1.0, 0.01, 0.001, 0.005, rows=1, batch_rows=4)
    cell.failed(429, 0.01)
    app = build_app(routes, metrics, Settings(), MemoryStore(), "token")
    async with serving(app, routes, metrics) as (_, port):
        url = f"http://127.0.0.1:{port}/metrics"
        text = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())).decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_every_query_asks_for_metrics_and_labels_that_a_gateway_exports(exported):
    assert len(QUERIES) >= 10
    for query in QUERIES:
        names = re.findall(r"\bprism_\w+", query)
        assert names, query
        labels = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", query))
        for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query):
            labels |= {label.strip() for label in group.split(",")}
        for name in names:
            assert name in exported, f"{name} in {query}"
            assert labels <= exported[name], query


def test_panels_are_numbered_once_and_do_not_overlap():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & cells and at["x"] + at["w"] <= 24
        cells |= own
