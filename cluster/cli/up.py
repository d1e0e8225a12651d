"""`prism up` and `prism down`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cluster.cli.output import emit, home_option, json_option
from cluster.home import Home
from cluster.launch import bring_up, follow, take_down
from cluster.probe import http_url
from cluster.settings import Boot, Settings, read_settings
from cluster.store.url import redacted


@click.command(epilog="Example: prism up --http-port 8080 && curl localhost:8080/v2/health/ready")
@home_option
@click.option("--http-port", type=click.IntRange(0, 65535), help="HTTP port; 0: any free one.  [default: 8000]")
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    help="Port kept for gRPC; nothing listens on it in this version.  [default: 9000]",
)
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Settings, as YAML; options win."
)
@click.option("--block", is_flag=True, help="Stay in the foreground; Ctrl-C takes everything down.")
@json_option
def up(
    home: Path, http_port: int | None, grpc_port: int | None, config: Path | None, block: bool, as_json: bool
) -> None:
    """Start store, Ray, controller and gateway; return when the gateway answers.

    They keep running in the background until `prism down`. All state is kept in --home: after another `up`, the same
    versions are served with the same split.
    """
    place = Home(home)
    settings = merged(read_settings(config), http_port, grpc_port)
    boot = place.running()
    if boot is None:
        started_s = time.monotonic()
        boot = bring_up(place, settings, lambda step: None if as_json else click.echo(step))
        took_s = round(time.monotonic() - started_s, 1)
        emit({**_facts(boot), "already_up": False, "seconds": took_s}, as_json, f"up in {took_s} s; {_text(boot)}")
    else:
        emit({**_facts(boot), "already_up": True}, as_json, f"already up; {_text(boot)}")
    if block:
        try:
            follow(place)
        except KeyboardInterrupt:
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


def merged(settings: Settings, http_port: int | None, grpc_port: int | None) -> Settings:
    """`settings` with the ports that were given as options."""
    if http_port is not None:
        settings = replace(settings, http=replace(settings.http, port=http_port))
    if grpc_port is not None:
        settings = replace(settings, grpc=replace(settings.grpc, port=grpc_port))
    return settings


def _facts(boot: Boot) -> dict[str, Any]:
    return {
        "home": boot.home,
        "url": http_url(boot.settings.http.host, boot.http_port),
        "http_port": boot.http_port,
        "grpc_port": boot.grpc_port,
        "store": redacted(boot.store_url),
        "ray": boot.ray_address,
        "artifacts": boot.artifacts_url,
        "logs": str(Path(boot.home) / "logs"),
    }


def _text(boot: Boot) -> str:
    facts = _facts(boot)
    return f"{facts['url']}\nhome {facts['home']}, store {facts['store']}, Ray {facts['ray']}, logs {facts['logs']}"
