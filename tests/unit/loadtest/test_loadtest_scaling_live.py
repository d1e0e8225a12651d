import asyncio
import socket
import threading

import numpy as np
from click.testing import CliRunner

from loadtest.bench.contestants import CONTESTANTS
from loadtest.scaling_live import MOST, SERVERS, autoscaled, judge, main, prism_replicas, ray_replicas, send

DUE_S = np.arange(0.0, 60.0, 0.1)


def judged(latency_s, seen=((0.0, 1, 1),), step_s=20.0):
    return judge("s", DUE_S, latency_s, step_s, 0.5, list(seen))


def test_a_calm_run_is_never_outside():
    found = judged(np.full(len(DUE_S), 0.02))
    assert (found.outside, found.back_s, found.failed) == (0, 0.0, 0)
    assert (found.ready_s, found.answered_s) == (None, None)


def test_times_count_from_the_step():
    latency_s = np.where((DUE_S >= 21) & (DUE_S < 30), 2.0, 0.02)
    found = judged(latency_s, [(0.0, 1, 1), (26.5, 2, 1), (27.0, 2, 2), (28.0, 3, 2)])
    assert (found.outside, found.back_s, found.ready_s, found.answered_s) == (9, 10.0, 6.5, 7.0)


def test_latency_that_is_late_to_the_end_never_came_back():
    found = judged(np.where(DUE_S >= 25, 2.0, 0.02))
    assert found.back_s is None and found.outside == 35


def test_a_request_without_an_answer_is_failed_and_late():
    latency_s = np.full(len(DUE_S), 0.02)
    latency_s[250] = np.inf
    found = judged(latency_s)
    assert found.failed == 1 and found.outside == 1


def test_a_replica_that_came_before_the_step_is_not_counted():
    found = judged(np.full(len(DUE_S), 0.02), [(0.0, 1, 1), (5.0, 2, 1), (30.0, 2, 2), (40.0, 3, 2)])
    assert (found.ready_s, found.answered_s) == (20.0, 10.0)


def test_what_ray_serve_says_last_counts(tmp_path):
    log = tmp_path / "log"
    log.write_text("up\nreplicas running: 1 100.0\nnoise\nreplicas running: 3 120.5\n")
    assert ray_replicas(log, {"a", "b"}) == (3, 2)
    log.write_text("up\n")
    assert ray_replicas(log, {"a"}) is None


def test_what_prism_says_of_its_replicas_is_read_from_its_metrics():
    ready, answered = b"prism_replicas", b"prism_replicas_answered"
    page = b"".join(
        b'%s{arm="stable",gateway="%s",model="m",version="1"} %s\n' % part
        for part in ((ready, b"a", b"3.0"), (ready, b"b", b"2.0"), (answered, b"a", b"1.0"), (answered, b"b", b"2.0"))
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_once, args=(listener, page))
        thread.start()
        found = prism_replicas(listener.getsockname()[1])
        thread.join()
    assert found == (3, 2)


def answer_once(listener, body):
    connection, _ = listener.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def test_both_servers_are_told_to_scale():
    for name in SERVERS:
        assert autoscaled(CONTESTANTS[name]).command[-2:] == ("--autoscale", str(MOST))


def test_a_server_that_is_not_known_is_one_line_before_anything_is_started(tmp_path):
    done = CliRunner().invoke(main, ["--servers", "prism,triton", "--work-dir", str(tmp_path / "work")])
    assert done.exit_code == 2 and "expected some of prism, ray-serve, got 'triton'" in done.output
    assert not (tmp_path / "work").exists()


async def test_a_connection_that_the_server_closed_while_it_was_idle_fails_no_request():
    async def answer_then_close(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nX-Replica: %d\r\ncontent-length: 2\r\n\r\nok" % id(writer))
            asyncio.get_running_loop().call_later(0.02, writer.close)

    server = await asyncio.start_server(answer_then_close, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        named: set[str] = set()
        latency_s = await send(port, [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"], np.array([0.0, 0.2]), named)
    assert np.isfinite(latency_s).all()
    assert len(named) == 2  # each connection is a replica here
