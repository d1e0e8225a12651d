from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest

from deployments.gateway import request_log
from deployments.gateway.request_log import MAX_WAITING_LINES, RequestLog


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_noted_request_is_one_line_with_its_parts(tmp_path: Path):
    file = tmp_path / "requests.jsonl"
    log = RequestLog(file, 1.0, "g1")
    log.note(
        status=200, request_s=0.0123456789, model="m", version="2", rows=3, request_id="a", traceparent="00-...",
        queue_s=0.001, run_s=0.002, batch_rows=8,
    )  # fmt: skip
    assert not file.exists()
    log.flush()
    (line,) = lines(file)
    assert line.pop("at_s") > 1e9
    assert line == {
        "gateway": "g1", "request_id": "a", "traceparent": "00-...", "model": "m", "version": "2", "status": 200,
        "rows": 3, "request_s": 0.012346, "queue_s": 0.001, "run_s": 0.002, "batch_rows": 8, "reason": "",
    }  # fmt: skip
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_share_of_requests_is_wanted():
    assert not any(RequestLog(Path("x"), 0.0).wants() for _ in range(1000))
    assert all(RequestLog(Path("x"), 1.0).wants() for _ in range(1000))
    half = RequestLog(Path("x"), 0.5)
    assert 4000 < sum(half.wants() for _ in range(10_000)) < 6000
    assert RequestLog(None, 1.0).share == 0.0


def test_memory_is_bounded_and_the_newest_stay(tmp_path: Path):
    log = RequestLog(tmp_path / "r", 1.0)
    for i in range(MAX_WAITING_LINES + 5):
        log.note(status=200, request_s=0.0, model="m", request_id=str(i))
    assert log.waiting == MAX_WAITING_LINES
    log.flush()
    assert log.waiting == 0
    assert lines(tmp_path / "r")[0]["request_id"] == "5"


def test_the_disk_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(request_log, "MAX_FILE_BYTES", 1000)
    log = RequestLog(tmp_path / "r", 1.0)
    for i in range(50):
        log.note(status=200, request_s=0.0, model="m", request_id=str(i))
        log.flush()
    files = sorted(tmp_path.iterdir())
    assert len(files) <= 2 and sum(f.stat().st_size for f in files) < 3000
    assert max(int(line["request_id"]) for f in files for line in lines(f)) == 49


@pytest.mark.parametrize("begun", [True, False])
def test_a_file_that_another_process_has_just_renamed_is_not_replaced_by_the_one_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, begun: bool
):
    monkeypatch.setattr(request_log, "MAX_FILE_BYTES", 10)
    file = tmp_path / "r"
    opening = request_log.os.open

    def opened(path: Path, *arguments: int) -> int:
        descriptor = opening(path, *arguments)
        path.rename(tmp_path / "r.1")
        if begun:
            path.write_text("{}\n")
        return descriptor

    monkeypatch.setattr(request_log.os, "open", opened)
    log = RequestLog(file, 1.0)
    log.note(status=200, request_s=0.0, model="m")
    log.flush()
    assert len(lines(tmp_path / "r.1")) == 1 and lines(tmp_path / "r.1")[0] != {}
    assert file.exists() == begun and not caplog.records


def test_several_writers_do_not_mix_their_lines(tmp_path: Path):
    logs = [RequestLog(tmp_path / "r", 1.0, f"g{n}") for n in range(4)]

    def write(log: RequestLog) -> None:
        for _ in range(20):
            for _ in range(20):
                log.note(status=200, request_s=0.0, model="m" * 100)
            log.flush()

    threads = [threading.Thread(target=write, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(tmp_path / "r")) == 4 * 20 * 20


def test_a_disk_that_cannot_be_written_costs_lines_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    log = RequestLog(tmp_path / "nowhere" / "r", 1.0)
    with caplog.at_level(logging.WARNING, "prism.gateway"):
        for _ in range(3):
            log.note(status=200, request_s=0.0, model="m")
            log.flush()
    assert log.waiting == 0 and len(caplog.records) == 1
