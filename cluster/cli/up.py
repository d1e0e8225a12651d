"""`prism up` and `prism down`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from cluster.cli.output import emit, home_option, json_option
from cluster.errors import OperatorError, ServingError
from cluster.home import Home
from cluster.join import JoinDocument, check_local, joinable, outward_ip
from cluster.launch import bring_up, follow, join_up, take_down
from cluster.parts import end_boot
from cluster.probe import http_url
from cluster.settings import Boot, Settings, read_settings, with_environment
from cluster.store.url import redacted


@click.command(epilog="Example: prism up --http-port 8080 && curl localhost:8080/v2/health/ready")
@home_option
@click.option("--http-host", help="Address that HTTP clients reach; 0.0.0.0: all.  [default: 127.0.0.1]")
@click.option("--http-port", type=click.IntRange(0, 65535), help="HTTP port; 0: any free one.  [default: 8000]")
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    help="Port kept for gRPC; nothing listens on it in this version.  [default: 9000]",
)
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Settings, as YAML; options win."
)
@click.option("--node-ip", help="This machine's address for other nodes; a head with one writes HOME/join.json.")
@click.option("--address", metavar="HOST:PORT", help="Join the cluster of the head at this address, as a worker node.")
@click.option(
    "--join",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="PRISM_JOIN",
    help="The head's join.json, copied here (or PRISM_JOIN).  [default with --address: HOME/join.json]",
)
@click.option("--block", is_flag=True, help="Stay in the foreground; Ctrl-C takes everything down.")
@json_option
def up(
    home: Path,
    http_host: str | None,
    http_port: int | None,
    grpc_port: int | None,
    config: Path | None,
    node_ip: str | None,
    address: str | None,
    join: Path | None,
    block: bool,
    as_json: bool,
) -> None:
    """Start store, Ray, controller and gateway; return when the gateway answers.

    They keep running in the background until `prism down`. All state is kept in --home: after another `up`, the same
    versions are served with the same split. With --address or --join, this machine becomes one more node of a
    cluster that runs already: replicas and a gateway are placed here too. What is up already stays as it is: asked for
    something else, this is an error.
    """
    if block:  # what stops a container or a service stops us as Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = Home(home)
    boot = place.running()
    now = settings_of(boot) if boot is not None else Settings()
    settings = merged(read_settings(config, now), http_port, grpc_port, http_host, node_ip)
    try:
        if boot is not None:
            _check_staying(place)
            if address or join is not None:
                _check_joined(place, boot, address, join)
            _check_unchanged(place, now, settings)
            emit({**_facts(boot), "already_up": True}, as_json, f"already up; {_text(boot)}")
        else:
            started_s = time.monotonic()
            boot = _start(place, settings, address, join, lambda step: None if as_json else click.echo(step))
            took_s = round(time.monotonic() - started_s, 1)
            emit({**_facts(boot), "already_up": False, "seconds": took_s}, as_json, f"up in {took_s} s; {_text(boot)}")
        if block:
            follow(place)
    except KeyboardInterrupt:
        if not block:
            raise
        click.echo("stopping", err=True)
        take_down(place)


@click.command(epilog="Example: prism down --home .prism")
@home_option
@json_option
def down(home: Path, as_json: bool) -> None:
    """Stop everything that `prism up` started in this home, also after a crash. State is kept."""
    place = Home(home)
    count = take_down(place)
    text = f"stopped {count} processes" if count else f"nothing is running in {place}"
    try:
        end_boot(place)
    except ServingError as error:
        click.echo(f"{error.message}; the next prism up goes on with the Ray cluster that was stopped", err=True)
    emit({"home": str(place), "stopped": count}, as_json, text)


def merged(
    settings: Settings,
    http_port: int | None,
    grpc_port: int | None,
    http_host: str | None = None,
    node_ip: str | None = None,
) -> Settings:
    """`settings` with what was given as options. Raises: InvalidRequest."""
    if http_port is not None:
        settings = replace(settings, http=replace(settings.http, port=http_port))
    if http_host is not None:
        settings = replace(settings, http=replace(settings.http, host=http_host))
    if grpc_port is not None:
        settings = replace(settings, grpc=replace(settings.grpc, port=grpc_port))
    if node_ip is not None:
        settings = replace(settings, ray=replace(settings.ray, node_ip=node_ip))
    return settings


def settings_of(boot: Boot) -> Settings:
    """The settings of what runs, with the port that it was given."""
    return replace(boot.settings, http=replace(boot.settings.http, port=boot.http_port))


def start_head(place: Home, settings: Settings, say: Callable[[str], None]) -> Boot:
    """Bring a head up where nothing runs, with what the environment says. Raises: OperatorError, InvalidRequest."""
    _check_idle(place)
    check_local(settings.ray.node_ip)
    if place.join_file.exists() and not place.held_head():
        raise OperatorError(
            f"home: {place} is a node of another cluster; add --join {place.join_file} to join it again, or remove "
            "that file to make a cluster of its own"
        )
    return bring_up(place, with_environment(settings, os.environ), say)


def _start(place: Home, settings: Settings, address: str | None, join: Path | None, say: Callable[[str], None]) -> Boot:
    """Bring a head up, or a node that joins one. Raises: OperatorError."""
    if not address and join is None:
        return start_head(place, settings, say)
    _check_idle(place)
    check_local(settings.ray.node_ip)
    if place.held_head():
        raise OperatorError(f"home: {place} holds a head's state; join with another --home")
    document = JoinDocument.read(join or place.join_file)
    if address:
        document = replace(document, address=address)
    if not joinable(settings.ray.node_ip):
        settings = replace(settings, ray=replace(settings.ray, node_ip=outward_ip(document.address)))
    return join_up(place, replace(settings, gateway=document.gateway), document, say)


def _check_idle(place: Home) -> None:
    """Raises: OperatorError if a supervisor is on its way up or down."""
    state = place.supervisor()
    if state is not None and state.alive():
        raise OperatorError(f"home: Prism is {state.phase} in {place}; try again in a moment")


def _check_staying(place: Home) -> None:
    """Raises: OperatorError if what runs is about to end."""
    state = place.supervisor()
    if state is not None and state.phase in ("draining", "stopping"):
        raise OperatorError(f"home: Prism is {state.phase} in {place}; when it is down, prism up starts it again")


def _check_joined(place: Home, boot: Boot, address: str | None, join: Path | None) -> None:
    """Raises: OperatorError unless what runs is a node of the cluster that is to be joined."""
    if place.held_head():
        raise OperatorError(f"home: a head runs in {place}, which cannot join another; join with another --home")
    document = JoinDocument.read(join or place.join_file)
    wanted = address or document.address
    if (wanted, document.wire_secret) != (boot.ray_address, boot.wire_secret):
        raise OperatorError(
            f"home: the node in {place} has joined the cluster at {boot.ray_address}, not this one at {wanted}; prism "
            "down, then join it, or join with another --home"
        )


def _check_unchanged(place: Home, now: Settings, asked: Settings) -> None:
    """Raises: OperatorError if other settings are asked for than those of what runs."""
    if asked.http.port == 0:  # any
        asked = replace(asked, http=replace(asked.http, port=now.http.port))
    if not place.held_head():  # a node that joined has the head's, whatever its own file says
        asked = replace(asked, gateway=now.gateway)
    old, new = asdict(now), asdict(asked)
    changed = [f"{part}.{name}" for part in old for name in old[part] if old[part][name] != new[part][name]]
    if changed:
        raise OperatorError(
            f"home: Prism is up already in {place}, with another {', '.join(changed)}; to change that: prism down, and "
            "up again"
        )


def _facts(boot: Boot) -> dict[str, Any]:
    return {
        "home": boot.home,
        "url": http_url(boot.settings.http.host, boot.http_port),
        "http_port": boot.http_port,
        "grpc_port": boot.grpc_port,
        "store": redacted(boot.store_url),
        "ray": boot.ray_address,
        "artifacts": boot.artifacts_url,
        "node_ip": boot.node_ip,
        "logs": str(Path(boot.home) / "logs"),
    }


def _text(boot: Boot) -> str:
    facts = _facts(boot)
    return f"{facts['url']}\nhome {facts['home']}, store {facts['store']}, Ray {facts['ray']}, logs {facts['logs']}"
