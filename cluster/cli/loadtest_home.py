"""What `prism loadtest` takes from the Prism of a local home: where it answers, samples, settings, hands for events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.cli.session import Session, connect
from cluster.errors import InvalidRequest, ModelNotFound, OperatorError, ServingError
from cluster.home import Home
from cluster.names import Target
from cluster.probe import local_host

if TYPE_CHECKING:
    from loadtest.baseline import Against
    from loadtest.playback import Playback
    from loadtest.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Aim:
    """A scenario with a server to load. `playback` is there if the scenario has events, and they have been checked."""

    url: str
    scenario: Scenario
    playback: Playback | None = None
    about_server: dict[str, Any] | None = None
    against: Against | None = None


@contextmanager
def aim(
    scenario: Scenario, host: str | None, home: Path, baseline: str | None = None, artifact: Path | None = None
) -> Iterator[Aim]:
    """`scenario` aimed at `host`, or else at the Prism that runs in `home`, whose store stays connected meanwhile.

    Raises: OperatorError if what is needed of the home is not there; InvalidRequest; what checking events and baselines
        raises. Nothing has been started then.
    """
    from loadtest.calls import check_host

    if baseline is not None:
        from loadtest.baseline import Against, check

        check(scenario, baseline)
    if host is not None and not scenario.events and (baseline is None or artifact is not None):
        url = check_host(host)
        against = Against(baseline, artifact) if baseline is not None and artifact is not None else None
        yield Aim(url, scenario, against=against)
        return
    if Home(home).running() is None:
        what = "events: they need" if scenario.events else "baseline: it needs" if host is not None else "host:"
        hint = "leave them out with --no-events" if scenario.events else "give --artifact DIR"
        if host is None:
            raise OperatorError(f"host: nothing is running in {home}; start it with `prism up`, or give --host URL")
        raise OperatorError(f"{what} the Prism of a local home, and nothing is running in {home}; or {hint}")
    with connect(
        home, changing=any(event.action in ("scale", "split", "promote") for event in scenario.events)
    ) as session:
        if host is not None and not _same_server(check_host(host), session.url):
            raise InvalidRequest(
                f"host: {host} is not the Prism that runs in {home} ({session.url}), which this scenario needs"
            )
        yield _aimed(scenario, session, home, baseline, artifact)


def _aimed(scenario: Scenario, session: Session, home: Path, baseline: str | None, artifact: Path | None) -> Aim:
    from loadtest.home_actions import HomeActions
    from loadtest.home_artifacts import with_samples
    from loadtest.playback import Playback
    from loadtest.server_facts import home_facts

    models = [target.model for target in scenario.targets]
    if not all(models):
        raise InvalidRequest("targets.model: missing; name a model in the scenario or with --model")
    playback = None
    if scenario.events:
        actions = HomeActions(Home(home), session.store, session.by, models[0])
        actions.check(scenario.events)
        playback = Playback(scenario.events, actions.do, scenario.warmup_s)
    about: dict[str, Any] = {}
    try:
        scenario = with_samples(scenario, session.store, session.artifacts)
        about = home_facts(session.boot, session.store, [Target.parse(model).model for model in models])
    except ModelNotFound:
        raise
    except ServingError:
        pass  # the server can be loaded without its store
    against = _against(baseline, artifact, models[0], session) if baseline else None
    return Aim(session.url, scenario, playback, about, against)


def _against(baseline: str, artifact: Path | None, model: str, session: Session) -> Against:
    """As many replicas and rows as Prism gives the version. Raises: InvalidRequest if Prism serves something else."""
    from cluster.artifact import Artifact
    from loadtest.baseline import Against
    from loadtest.home_artifacts import check_same, served, split_versions

    versions = split_versions(model, session.store)
    if len(versions) > 1:
        names = " or ".join(f"{model}:{version}" for version in versions)
        raise InvalidRequest(f"baseline: {model} is split, which plain Ray Serve does not have; name {names}")
    found = served(model, session.store, session.artifacts)
    if artifact is not None:
        check_same(Artifact.read(artifact).digest, found, artifact)
    deploy = found.record.deploy
    return Against(baseline, artifact or found.folder, max(1, found.replicas), deploy.max_batch_rows if deploy else 0)


def _same_server(host: str, url: str) -> bool:
    one, other = urlsplit(host), urlsplit(url)
    names = {local_host("127.0.0.1" if each.hostname == "localhost" else each.hostname or "") for each in (one, other)}
    return one.port == other.port and len(names) == 1
