import socket
import threading
from contextlib import contextmanager

import pytest

from loadtest.calls import Call
from loadtest.connections import Answer, Connections, NoAnswer

CALL = Call("m", "/v2/models/m/infer", {"Content-Type": "application/json"}, b"{}")
OK = b"HTTP/1.1 200 OK\r\nX-Prism-Model-Version: 7\r\nContent-Length: 3\r\n\r\nabc"


@contextmanager
def server(*scripts):
    """One accepted connection per script; each item of a script answers one request, b"" closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen = []

    def serve():
        for script in scripts:
            connection, _ = listener.accept()
            with connection:
                for answer in script:
                    seen.append(connection.recv(65536))
                    connection.sendall(answer)
                    if not answer:
                        break

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen, thread
    finally:
        listener.close()


def post(connections, body=CALL.body):
    return connections.post(connections.head(CALL), body)


def test_a_request_is_sent_whole_and_its_answer_is_read():
    with server([OK]) as (host, seen, thread):
        assert post(Connections(host, 5)) == Answer(200, "7", 3)
        thread.join(5)
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert body == b"{}"
    assert head.split(b"\r\n")[0] == b"POST /v2/models/m/infer HTTP/1.1"
    assert f"Host: {host[7:]}".encode() in head and b"Content-Length: 2" in head and b"application/json" in head


def test_a_connection_is_used_again():
    with server([OK, OK, OK]) as (host, seen, thread):
        connections = Connections(host, 5)
        assert [post(connections).status for _ in range(3)] == [200] * 3
        thread.join(5)
    assert len(seen) == 3


def test_a_connection_that_the_server_closed_while_idle_is_replaced():
    with server([OK], [OK]) as (host, _, thread):
        connections = Connections(host, 5)
        post(connections)
        while not _closed_by_peer(connections):
            pass
        assert post(connections).status == 200
        thread.join(5)


def _closed_by_peer(connections):
    idle = connections._idle[0]
    idle.setblocking(False)
    try:
        return idle.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    finally:
        idle.settimeout(5)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", Answer(200, "", 5)),
        (b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n", Answer(429, "", 0)),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, Answer(200, "7", 3)),
        (OK.replace(b"X-Prism", b"x-PRISM"), Answer(200, "7", 3)),
    ],
)
def test_every_kind_of_answer_is_read_to_its_end(answer, expected):
    with server([answer]) as (host, _, _):
        assert post(Connections(host, 5)) == expected


@pytest.mark.parametrize(
    "answer", [b"", b"not http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]
)
def test_what_is_no_whole_answer_is_said_to_be_none(answer):
    with server([answer]) as (host, _, _), pytest.raises(NoAnswer):
        post(Connections(host, 5))


def test_an_answer_that_asks_to_close_is_the_last_on_its_connection():
    with server([OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")], [OK]) as (host, _, _):
        connections = Connections(host, 5)
        assert [post(connections).status for _ in range(2)] == [200, 200]


def test_nobody_listening_is_no_answer_and_a_silent_server_is_a_timeout():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(NoAnswer):
            post(Connections(f"http://127.0.0.1:{probe.getsockname()[1]}", 5))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
        post(Connections(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.05))


def test_large_bodies_arrive_whole():
    body = b"x" * 300_000
    listener = socket.create_server(("127.0.0.1", 0))
    got = bytearray()

    def serve():
        connection, _ = listener.accept()
        with connection:
            while len(got) < 300_000:
                got.extend(connection.recv(65536))
            connection.sendall(OK)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    connections = Connections(f"http://127.0.0.1:{listener.getsockname()[1]}", 5)
    head = connections.head(Call("m", "/", {}, body))
    assert connections.post(head, body).status == 200
    thread.join(5)
    assert got == head + b"\r\n" + body
    listener.close()
