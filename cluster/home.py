"""A home: the folder that holds all state of one Prism, and the short folder for its sockets.

    boot.json         what running processes need to know (secrets: mode 0600)
    supervisor.json   who supervises, and how far it has come
    settings.json     the settings of the last `prism up`
    join.json         what another machine needs to join (secrets: mode 0600)
    head              there once a head has run here
    secrets/          tokens, made once
    artifacts/        published artifacts, unless settings name another place
    store/            the embedded store's data
    logs/             what the processes wrote

Sockets and Ray's files live in a run folder below /tmp, because Unix socket paths may have at most about 100 bytes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import msgspec

from cluster import procs
from cluster.errors import InvalidRequest, OperatorError
from cluster.procs import Identity
from cluster.settings import Boot

RUN_ROOT = Path("/tmp")
MIN_FREE_BYTES = 512 << 20  # below this, the store's log, artifacts and Ray's files have no room to work
MAX_LOG_BYTES = 16 << 20

Phase = Literal["starting", "ready", "recovering", "draining", "stopping", "failed"]


@dataclass(frozen=True, slots=True)
class SupervisorState:
    """Who supervises a home, and how far it has come.

    `steps` are lines for people, in order; `error` says in one line why the phase is `failed` or `recovering`.
    `leaders` are the leaders of the sessions it has started.
    """

    pid: int
    started_s: float
    phase: Phase
    steps: tuple[str, ...] = ()
    error: str = ""
    leaders: tuple[Identity, ...] = ()

    def alive(self) -> bool:
        return Identity(self.pid, self.started_s).process() is not None


class Home:
    """One Prism's state on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.key = blake2b(str(self.path).encode(), digest_size=5).hexdigest()
        self.run_dir = RUN_ROOT / f"prism-{os.getuid()}-{self.key}"
        self.boot_file = self.path / "boot.json"
        self.settings_file = self.path / "settings.json"
        self.join_file = self.path / "join.json"
        self.head_file = self.path / "head"
        self.ray_port_file = self.path / "ray-port"
        self.supervisor_pid_file = self.path / "supervisor.json"
        self.lock_file = self.path / "supervisor.lock"
        self.artifacts_dir = self.path / "artifacts"
        self.store_dir = self.path / "store"
        self.log_dir = self.path / "logs"
        self.door_file = self.run_dir / "door.sock"
        self.ray_dir = self.run_dir / "ray"

    def __str__(self) -> str:
        return str(self.path)

    def prepare(self) -> None:
        """Make the folders. Raises: OperatorError if that is not possible, not safe, or the disk is full."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.artifacts_dir, self.store_dir, self.log_dir, self.path / "secrets"):
                folder.mkdir(mode=0o700, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OperatorError(f"home: cannot write in {self.path}: {error.strerror}") from None
        _private_folder(self.run_dir)
        for folder in (self.path, self.run_dir):
            free = shutil.disk_usage(folder).free
            if free < MIN_FREE_BYTES:
                raise OperatorError(
                    f"home: {folder} has {free >> 20} MiB of disk left, at least {MIN_FREE_BYTES >> 20} MiB are needed"
                )

    def keep_ray_logs(self) -> None:
        """Copy what Ray's processes wrote to `logs/ray`, in place of what was kept there before."""
        kept = self.log_dir / "ray"
        shutil.rmtree(kept, ignore_errors=True)
        try:
            shutil.copytree(self.ray_dir / "session_latest" / "logs", kept, ignore=_too_large, symlinks=True)
        except (OSError, shutil.Error):
            pass  # Ray had not come so far, or the disk is full

    def clear_run_dir(self) -> None:
        """Remove sockets and Ray's files."""
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def secret_file(self, name: str) -> Path:
        """A file, readable by its owner only, with a secret made once: 64 hexadecimal digits."""
        file = self.path / "secrets" / name
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            temporary = file.with_suffix(f".{os.getpid()}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(secrets.token_hex(32))
            try:
                os.link(temporary, file)  # whoever comes second keeps the first one's secret
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        return file

    def keep_secret(self, name: str, value: str) -> None:
        """Make `value`, which came from elsewhere, the secret of that name."""
        write_private(self.secret_file(name), value)

    def secret(self, name: str) -> str:
        return self.secret_file(name).read_text()

    def supervisor(self) -> SupervisorState | None:
        """What the supervisor last wrote, whether or not it still lives; None if there was none."""
        try:
            return msgspec.json.decode(self.supervisor_pid_file.read_bytes(), type=SupervisorState)
        except (OSError, msgspec.DecodeError):
            return None

    def write_supervisor(self, state: SupervisorState) -> None:
        temporary = self.supervisor_pid_file.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(asdict(state)))
        temporary.replace(self.supervisor_pid_file)

    def held_head(self) -> bool:
        """Whether a head has run here, whose state a node that joins another cluster would overwrite."""
        return self.head_file.exists() or self.ray_port_file.exists() or any(self.store_dir.glob("*"))

    def running(self) -> Boot | None:
        """What the live supervisor's processes were told; None if none lives or it has not come that far."""
        state = self.supervisor()
        if state is None or not state.alive():
            return None
        try:
            return Boot.read(self.boot_file)
        except InvalidRequest:
            return None

    def stop_processes(self, grace_s: float) -> int:
        """Stop every process that belongs to this home, and nothing else. Returns how many there were."""
        state = self.supervisor()
        return procs.stop_marked(self.key, grace_s, state.leaders if state else ())


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    temporary.replace(file)


def _too_large(folder: str, names: list[str]) -> list[str]:
    """The files that are too large to be kept."""
    return [name for name in names if (file := Path(folder) / name).is_file() and file.stat().st_size > MAX_LOG_BYTES]


def _private_folder(folder: Path) -> None:
    """Make a folder that only we can enter. Raises: OperatorError if another user made it, or may enter it.

    The name can be foretold, and everybody may write in /tmp.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise OperatorError(f"home: cannot make {folder}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OperatorError(f"home: {folder} is not a folder that only this user may enter; remove it and try again")
