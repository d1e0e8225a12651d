"""The door: one listening HTTP socket per node, which outlives every gateway.

The supervisor binds it, without `SO_REUSEPORT`, so that a taken port is an error at once, and hands it to gateways over
a Unix socket. They accept from the same queue: a gateway that goes away holds no share of new connections, and while
none is there they wait.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from pathlib import Path

from cluster.errors import OperatorError

BACKLOG = 2048
_PEER_S = 2.0
_RETRY_S = 0.05
_GREETING = b"prism-door-1"


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 means any free one. Raises: OperatorError, saying what is in the way."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise OperatorError(f"http.host: {host!r}: {error.strerror}") from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last run may still linger
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OperatorError(
            f"http.port: cannot listen on {host}:{port}: {os.strerror(error.errno or 0)} (choose another: --http-port)"
        ) from None
    return sock


class Door:
    """Hands a listening socket to every process of this user that asks, until it is closed."""

    def __init__(self, path: Path, sock: socket.socket) -> None:
        """`path`: where to ask. The socket stays the caller's to close."""
        self._path = path
        self._sock = sock
        self._closed = False
        path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        path.chmod(0o600)
        self._server.listen(64)
        self._thread = threading.Thread(target=self._serve, name="door", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            with peer:
                try:
                    peer.settimeout(_PEER_S)
                    if not self._closed and _same_user(peer):
                        socket.send_fds(peer, [_GREETING], [self._sock.fileno()])
                except OSError:
                    pass  # it went away; it will ask again

    def close(self) -> None:
        """Stop handing out. Sockets already handed out stay as they are."""
        self._closed = True
        self._path.unlink(missing_ok=True)
        try:
            self._server.shutdown(socket.SHUT_RDWR)  # wakes accept()
        except OSError:
            pass
        self._server.close()
        self._thread.join(_PEER_S)


def open_door(path: str, timeout_s: float) -> socket.socket:
    """The listening socket handed out at `path`. Raises: OperatorError if none is handed out within `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return _ask(path)
        except OSError as error:
            if time.monotonic() + _RETRY_S > deadline_s:
                raise OperatorError(f"door: {path} hands out no socket: {error}") from None
            time.sleep(_RETRY_S)


def _ask(path: str) -> socket.socket:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(_PEER_S)
        peer.connect(path)
        greeting, descriptors, _, _ = socket.recv_fds(peer, len(_GREETING), 1)
    if greeting != _GREETING or len(descriptors) != 1:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ConnectionError("no socket came")
    os.set_inheritable(descriptors[0], False)
    return socket.socket(fileno=descriptors[0])


def _same_user(peer: socket.socket) -> bool:
    """Whether the process at the other end runs as this user. The socket's folder is private as well."""
    if not hasattr(socket, "SO_PEERCRED"):  # not on every system
        return True
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.getuid())
