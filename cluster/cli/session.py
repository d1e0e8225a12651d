"""What commands work with: the running Prism of a home, its store and its artifacts."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click

from cluster.artifacts_store import ArtifactStore
from cluster.errors import InvalidRequest, OperatorError
from cluster.home import Home
from cluster.probe import http_url
from cluster.settings import Boot
from cluster.store import VersionStore
from cluster.store.follow import FILES, regression
from cluster.store.kept import Kept, read_kept

REPAIR = "prism store restore brings back what was served, prism store adopt takes the store as it is"


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

    def last_good(self) -> dict[str, Kept]:
        """What the controller and the gateways have read last, by file name, as far as that is there and whole."""
        found = {}
        for name in FILES:
            with suppress(InvalidRequest):
                found[name] = read_kept(Path(self.boot.home) / name)
        return found

    def regressed(self) -> str:
        """Why nothing of what the store says is applied; "" if it is. Raises: StoreUnavailable."""
        found = (regression(self.store, kept) for kept in self.last_good().values())
        return next((why for why in found if why), "")

    def check_followed(self) -> None:
        """Raises: OperatorError, in one line, if a change of the store would not be applied; StoreUnavailable."""
        why = self.regressed()
        if why:
            raise OperatorError(f"the version store has lost data, so nothing of it is applied: {why}; {REPAIR}")


@contextmanager
def connect(home: Path, *, changing: bool = False) -> Iterator[Session]:
    """The running Prism of `home`; a session that was passed to the command as its context object comes first.

    Args:
        changing: The command changes what is in the store, and so refuses to if that would not be applied.

    Raises: OperatorError if nothing is running there, or the store has lost data and `changing`.
    """
    context = click.get_current_context(silent=True)
    given = context.find_object(Session) if context is not None else None
    if given is not None:
        if changing:
            given.check_followed()
        yield given
        return
    place = Home(home)
    boot = place.running()
    if boot is None:
        raise OperatorError(nothing_running(place))
    session = session_of(boot)
    try:
        if changing:
            session.check_followed()
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
