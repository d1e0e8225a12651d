"""What commands work with: the running Prism of a home, its store and its artifacts."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from cluster.artifacts_store import ArtifactStore
from cluster.errors import OperatorError
from cluster.home import Home
from cluster.probe import http_url
from cluster.settings import Boot
from cluster.store import VersionStore


@dataclass(frozen=True, slots=True)
class Session:
    """`by` is who the audit says it was."""

    boot: Boot
    store: VersionStore
    artifacts: ArtifactStore
    by: str

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        return http_url(self.boot.settings.http.host, self.boot.http_port)


@contextmanager
def connect(home: Path) -> Iterator[Session]:
    """The running Prism of `home`; a session that was passed to the command as its context object comes first.

    Raises: OperatorError if nothing is running there.
    """
    context = click.get_current_context(silent=True)
    given = context.find_object(Session) if context is not None else None
    if given is not None:
        yield given
        return
    place = Home(home)
    boot = place.running()
    if boot is None:
        raise OperatorError(nothing_running(place))
    session = session_of(boot)
    try:
        yield session
    finally:
        session.store.close()


def session_of(boot: Boot) -> Session:
    """A session with a running Prism; its store is the caller's to close."""
    from cluster.store.redis import RedisStore

    artifacts = ArtifactStore(boot.artifacts_url, Path(boot.home) / "cache")
    return Session(boot, RedisStore(boot.store_url, timeout_s=5.0), artifacts, whoami())


def nothing_running(home: Home) -> str:
    state = home.supervisor()
    if state is not None and state.alive():
        return (
            f"Prism is being started in {home} (so far: {', '.join(state.steps) or 'nothing'}); try again in a moment"
        )
    failed = f" (the last start failed: {state.error})" if state is not None and state.error else ""
    chosen = "" if home.path == Path(".prism").resolve() else f" --home {home}"
    return f"nothing is running in {home}{failed}; start it with: prism up{chosen}"


def whoami() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
