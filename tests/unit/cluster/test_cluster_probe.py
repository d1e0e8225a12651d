import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cluster.probe import gateway_answers, http_url, local_host


@pytest.fixture
def server():
    """An HTTP server that answers with the bytes, or the status, in `answer`."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self):  # the name the server calls
            assert self.path == "/-/healthz"
            if isinstance(made.answer, bytes):
                self.wfile.write(made.answer)
            else:
                self.send_response(made.answer)
                self.end_headers()

        def log_message(self, *_):
            pass

    made = HTTPServer(("127.0.0.1", 0), Answering)
    made.answer = 200
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.parametrize(
    ("listens", "reached", "url"),
    [
        ("", "127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "127.0.0.1", "http://127.0.0.1:80"),
        ("::", "::1", "http://[::1]:80"),
        ("::1", "::1", "http://[::1]:80"),
        ("localhost", "localhost", "http://localhost:80"),
    ],
)
def test_a_server_on_every_address_is_reached_on_this_machines_own(listens, reached, url):
    assert (local_host(listens), http_url(listens, 80)) == (reached, url)


def test_a_gateway_answers_when_it_is_healthy_and_not_when_it_drains(server):
    assert gateway_answers("0.0.0.0", server.server_port)
    server.answer = 503
    assert not gateway_answers("", server.server_port)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n"])
def test_something_that_is_no_gateway_does_not_answer(server, answer):
    server.answer = answer
    assert not gateway_answers("127.0.0.1", server.server_port)


def test_nothing_does_not_answer():
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        assert not gateway_answers("127.0.0.1", taken.getsockname()[1])
