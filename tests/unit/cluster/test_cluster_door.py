"""The listening socket, and handing it out."""

import socket
import tempfile
from pathlib import Path

import pytest

from cluster.door import Door, bind, open_door
from cluster.errors import OperatorError


@pytest.fixture
def place():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short enough for a Unix socket
        yield Path(folder) / "door.sock"


@pytest.fixture
def listening():
    with bind("127.0.0.1", 0) as sock:
        yield sock


def test_port_zero_takes_a_free_port(listening):
    assert listening.getsockname()[1] > 0


def test_a_taken_port_is_one_line_that_names_it(listening):
    port = listening.getsockname()[1]
    with pytest.raises(OperatorError, match=f"127.0.0.1:{port}.*in use") as caught:
        bind("127.0.0.1", port)
    assert "\n" not in caught.value.message


def test_a_port_that_another_shares_by_reuseport_is_taken_too():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OperatorError, match="in use"):
            bind("127.0.0.1", other.getsockname()[1])


def test_a_host_that_is_no_address_is_a_clear_error():
    with pytest.raises(OperatorError, match=r"http\.host"):
        bind("no host at all", 0)


def test_every_socket_handed_out_accepts_from_the_same_queue(place, listening):
    door = Door(place, listening)
    first, second = open_door(str(place), 1.0), open_door(str(place), 1.0)
    first.settimeout(2.0)
    second.settimeout(2.0)
    with socket.create_connection(listening.getsockname(), timeout=2.0):
        first.accept()[0].close()
    first.close()
    with socket.create_connection(listening.getsockname(), timeout=2.0):
        second.accept()[0].close()
    second.close()
    door.close()


def test_a_connection_waits_while_nobody_accepts(place, listening):
    door = Door(place, listening)
    with socket.create_connection(listening.getsockname(), timeout=2.0) as client:
        client.sendall(b"early")
        with open_door(str(place), 1.0) as late:
            peer, _ = late.accept()
            with peer:
                assert peer.recv(5) == b"early"
    door.close()


def test_a_socket_handed_out_is_not_inherited_by_children(place, listening):
    door = Door(place, listening)
    with open_door(str(place), 1.0) as sock:
        assert not sock.get_inheritable()
    door.close()


def test_a_closed_door_hands_out_nothing_and_says_so(place, listening):
    Door(place, listening).close()
    assert not place.exists()
    with pytest.raises(OperatorError, match="hands out no socket"):
        open_door(str(place), 0.1)


def test_a_door_left_by_a_crash_is_replaced(place, listening):
    place.touch()
    door = Door(place, listening)
    open_door(str(place), 1.0).close()
    door.close()


def test_only_this_user_may_ask(place, listening):
    door = Door(place, listening)
    assert place.stat().st_mode & 0o077 == 0
    door.close()
