"""Requests that can be found again: ids and traces from headers, and the sampled log, over a real connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gateway_fakes import FakeRoutes, serving

from cluster.errors import Overloaded
from deployments.gateway.request_log import RequestLog

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
BODY = np.arange(4, dtype="<f4").tobytes()


@dataclass
class Running:
    routes: FakeRoutes
    port: int

    async def infer(self, *headers: str) -> str:
        """The head of the response, in lower case."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = ("POST /v2/models/m/infer HTTP/1.1", "host: x", "inference-header-content-length: 0", *headers)
        writer.write("\r\n".join((*lines, f"content-length: {len(BODY)}", "", "")).encode() + BODY)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().lower()
        writer.close()
        return head


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    routes = FakeRoutes()
    async with serving(lambda *_: None, routes, log=RequestLog(tmp_path / "requests.jsonl", 1.0, "g1")) as (_, port):
        yield Running(routes, port)


async def test_a_request_id_comes_back_and_travels_on_with_the_trace(running: Running) -> None:
    head = await running.infer("X-Request-Id: order-17", f"Traceparent: {PARENT}")
    assert head.startswith("http/1.1 200") and "\r\nx-request-id: order-17\r\n" in head
    (request,) = running.routes.arms_["m", "1"].requests
    assert (request.id, request.trace) == ("order-17", PARENT)


async def test_a_request_without_them_gets_no_such_header(running: Running) -> None:
    head = await running.infer()
    assert head.startswith("http/1.1 200") and "x-request-id" not in head
    (request,) = running.routes.arms_["m", "1"].requests
    assert (request.id, request.trace) == ("", "")


async def test_malformed_ones_are_ignored(running: Running) -> None:
    head = await running.infer("X-Request-Id: two words", "Traceparent: 00-xyz")
    assert head.startswith("http/1.1 200") and "x-request-id" not in head


async def test_an_error_has_the_request_id_too(running: Running) -> None:
    running.routes.arms_["m", "1"].refuse = Overloaded("full")
    head = await running.infer("X-Request-Id: order-17")
    assert head.startswith("http/1.1 429") and "\r\nx-request-id: order-17\r\n" in head and "\r\nretry-after: 1" in head


async def test_what_was_sampled_is_in_the_file_when_the_gateway_has_stopped(tmp_path: Path) -> None:
    routes, file = FakeRoutes(), tmp_path / "requests.jsonl"
    async with serving(lambda *_: None, routes, log=RequestLog(file, 1.0, "g1")) as (_, port):
        running = Running(routes, port)
        await running.infer("X-Request-Id: first", f"Traceparent: {PARENT}")
        routes.arms_["m", "1"].refuse = Overloaded("full")
        await running.infer()
    good, bad = [json.loads(line) for line in file.read_text().splitlines()]
    assert (good["request_id"], good["traceparent"], good["model"], good["version"]) == ("first", PARENT, "m", "1")
    assert (good["status"], good["rows"], good["gateway"]) == (200, 1, "g1")
    assert good["request_s"] > 0 and (good["queue_s"], good["run_s"]) == (0.001, 0.002)
    assert (bad["status"], bad["reason"], bad["request_id"], bad["run_s"]) == (429, "full", "", None)


async def test_a_request_that_could_not_be_read_is_sampled_too(tmp_path: Path) -> None:
    routes, file = FakeRoutes(), tmp_path / "requests.jsonl"
    async with serving(lambda *_: None, routes, log=RequestLog(file, 1.0, "g1")) as (_, port):
        head = await Running(routes, port).infer("X-Prism-Timeout-Ms: soon", "X-Request-Id: odd")
        assert head.startswith("http/1.1 400") and "\r\nx-request-id: odd\r\n" in head
    (line,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert (line["status"], line["model"], line["request_id"]) == (400, "m", "odd") and "soon" in line["reason"]


async def test_without_a_share_no_file_is_made(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    async with serving(lambda *_: None, FakeRoutes(), log=RequestLog(file, 0.0)) as (_, port):
        await Running(FakeRoutes(), port).infer()
    assert not file.exists()
