"""`prism up` and `prism down`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cluster.cli.output import emit, home_option, json_option
from cluster.errors import OperatorError
from cluster.home import Home
from cluster.join import JoinDocument, check_local, joinable, outward_ip
from cluster.launch import bring_up, follow, join_up, take_down
from cluster.probe import http_url
from cluster.settings import Boot, Settings, read_settings
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
    cluster that runs already: replicas and a gateway are placed here too.
    """
    if block:  # what stops a container or a service stops us as Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = Home(home)
    settings = merged(read_settings(config), http_port, grpc_port, http_host, node_ip)
    try:
        boot = place.running()
        if boot is None:
            started_s = time.monotonic()
            boot = _start(place, settings, address, join, lambda step: None if as_json else click.echo(step))
            took_s = round(time.monotonic() - started_s, 1)
            emit({**_facts(boot), "already_up": False, "seconds": took_s}, as_json, f"up in {took_s} s; {_text(boot)}")
        else:
            emit({**_facts(boot), "already_up": True}, as_json, f"already up; {_text(boot)}")
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


def _start(place: Home, settings: Settings, address: str | None, join: Path | None, say: Callable[[str], None]) -> Boot:
    """Bring a head up, or a node that joins one. Raises: OperatorError."""
    check_local(settings.ray.node_ip)
    was_head = place.ray_port_file.exists() or any(place.store_dir.glob("*"))
    if not address and join is None:
        if place.join_file.exists() and not was_head:
            raise OperatorError(
                f"home: {place} is a node of another cluster; add --join {place.join_file} to join it again, or remove "
                "that file to make a cluster of its own"
            )
        return bring_up(place, settings, say)
    if was_head:
        raise OperatorError(f"home: {place} holds a head's state; join with another --home")
    document = JoinDocument.read(join or place.join_file)
    if address:
        document = replace(document, address=address)
    if not joinable(settings.ray.node_ip):
        settings = replace(settings, ray=replace(settings.ray, node_ip=outward_ip(document.address)))
    return join_up(place, replace(settings, gateway=document.gateway), document, say)


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
