"""The load generator against real sockets, and a short benchmark from end to end."""

import asyncio
import json
import queue
import subprocess
import sys
import threading
from base64 import b64decode
from contextlib import contextmanager, suppress

import pytest

from loadtest.bench.generator import LoadPlan, run
from loadtest.bench.result import BenchResult

pytestmark = pytest.mark.integration

REQUEST = b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 256\r\n\r\n" + bytes(256)


@contextmanager
def responder():
    command = [sys.executable, "-m", "loadtest.bench.servers.responder", "--body-bytes", "40"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline().split()[1])
        finally:
            process.terminate()


@contextmanager
def server(answer):
    """`answer(writer, number)` is called for each request of any connection, counted from 0."""
    count = 0
    started, stop = queue.Queue(), asyncio.Event()

    async def serve(reader, writer):
        nonlocal count
        with suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            while await reader.readexactly(len(REQUEST)):
                count += 1
                await answer(writer, count - 1)
                await writer.drain()
        writer.close()

    async def main():
        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        started.put((asyncio.get_running_loop(), listening.sockets[0].getsockname()[1]))
        await stop.wait()
        listening.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    loop, port = started.get(timeout=10)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture
def request_file(tmp_path):
    file = tmp_path / "request"
    file.write_bytes(REQUEST)
    return str(file)


def whole(status=200, more=b""):
    return b"HTTP/1.1 %d X\r\n%bContent-Length: 2\r\n\r\nok" % (status, more)


def test_a_closed_loop_counts_every_answer_once(request_file):
    with responder() as port:
        figures = run(LoadPlan(port, (request_file,), 16, 0.5, lead_s=0.1))
    assert figures.failed == 0
    assert figures.statuses == {"200": figures.answers}
    assert 500 < figures.ok <= figures.answers
    assert figures.rps == pytest.approx(figures.ok / 0.5)
    assert 0 < figures.latency.p50_s <= figures.latency.p99_s <= figures.latency.max_s
    assert b64decode(figures.samples[0]).endswith(b"\r\n\r\n" + bytes(40))


def test_an_open_loop_offers_its_rate(request_file):
    with responder() as port:
        figures = run(LoadPlan(port, (request_file,), 16, 2.0, rate=300, lead_s=0.1))
    assert figures.failed == 0
    assert figures.ok == pytest.approx(600, rel=0.25)  # a Poisson count: 600, give or take 25
    assert figures.lag.count == figures.ok


def test_an_open_loop_counts_latency_from_the_due_time(request_file):
    async def slowly(writer, number):
        await asyncio.sleep(0.1)
        writer.write(whole())

    with server(slowly) as port:
        # Two connections answer 20 a second and 60 are due: the later ones wait longer and longer.
        figures = run(LoadPlan(port, (request_file,), 2, 1.0, rate=60, lead_s=0.0, drain_s=1.0))
    assert figures.latency.p50_s > 0.2
    assert figures.errors["never sent"] > 10


def test_answers_in_pieces_refusals_and_closed_connections_are_told_apart(request_file):
    async def answer(writer, number):
        kind = number % 8
        if kind == 1:
            writer.write(whole(429))
        elif kind == 3:
            writer.close()
        elif kind == 5:
            writer.write(whole(more=b"Connection: close\r\n"))
            writer.close()
        else:
            for at in range(0, len(whole()), 20):
                writer.write(whole()[at : at + 20])
                await writer.drain()
                await asyncio.sleep(0.001)

    with server(answer) as port:
        figures = run(LoadPlan(port, (request_file,), 4, 1.0, lead_s=0.0))
    assert set(figures.statuses) == {"200", "429"}
    assert figures.errors.keys() == {"closed"}
    assert figures.failed == figures.statuses["429"] + figures.errors["closed"]
    assert figures.answers == sum(figures.statuses.values())


def test_a_server_that_stops_answering_is_reported_and_not_waited_for_without_end(request_file):
    async def silence(writer, number):
        await asyncio.sleep(30)

    with server(silence) as port:
        figures = run(LoadPlan(port, (request_file,), 4, 0.2, lead_s=0.0, drain_s=0.3))
    assert figures.answers == 0
    assert figures.errors == {"unanswered": 4}


def test_a_short_benchmark_measures_checks_and_reports(tmp_path):
    command = [sys.executable, "-m", "loadtest.bench", "--quick", "--work", "T", "--contestants", "starlette"]
    command += ["--seconds", "0.5", "--connections", "1,8", "--rates", "100"]
    command += ["--out", str(tmp_path / "out"), "--work-dir", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "out").glob("bench-*.json")
    result = BenchResult.read(file)
    assert [(m.point.connections, m.point.rate) for m in result.measurements] == [(1, 0), (8, 0), (256, 100)]
    assert all(m.failed == 0 and m.rps > 0 and m.cpu_ms > 0 for m in result.measurements)
    assert result.ceiling_rps > 0 and result.floor
    assert {file.name for file in (tmp_path / "out").iterdir()} == {file.name, f"{file.stem}.html", "RESULTS.md"}


def test_a_server_that_answers_wrongly_is_never_measured(tmp_path):
    peer = {
        "name": "liar",
        "about": "answers zeros",
        "command": ["{python}", "-m", "loadtest.bench.servers.responder", "--port", "{port}"],
    }
    (tmp_path / "peer.json").write_text(json.dumps([peer]))
    command = [sys.executable, "-m", "loadtest.bench", "--quick", "--no-floor", "--work", "T", "--contestants", "liar"]
    command += ["--peer-file", str(tmp_path / "peer.json"), "--seconds", "0.2"]
    command += ["--out", str(tmp_path / "out"), "--work-dir", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "liar: raw: wrong answer to example 0" in done.stdout
