"""What a supervisor supervises: the parts of a head, and those of a node that joins one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from cluster import __version__, ray_head
from cluster.drain import DrainWatch
from cluster.errors import OperatorError
from cluster.home import Home
from cluster.join import JoinDocument, check_reachable, check_shared
from cluster.ray_boots import RayBoots
from cluster.ray_head import RayNode, ray_version
from cluster.ray_storage import RayStorage
from cluster.settings import Settings, read_settings
from cluster.storage import check_usable

RAY_START_S = 120.0


class StoreServer(Protocol):
    """The embedded store, as the supervisor sees it: `cluster.store.embedded.EmbeddedServer`."""

    def url(self) -> str: ...

    def start(self, env: Mapping[str, str] | None = None, *, may_move: bool = False) -> subprocess.Popen[bytes]: ...

    def wait_ready(self, process: subprocess.Popen[bytes], timeout_s: float = 10.0) -> None: ...


StartRay = Callable[[Mapping[str, str], IO[bytes], int], RayNode]
"""From the environment, where its output goes, and the port of the door."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What is supervised: an embedded store or the URL of another one, Ray, and the command that fills it.

    `bootstrap` is run with `--boot FILE` added; it exits 0 once the gateway answers, else with a line on stderr.
    `artifacts_url` is where published artifacts are. `watch` says whether a node that has joined was drained. `boots`
    says which Ray cluster a fault-tolerant head goes on with.
    """

    store: StoreServer | str
    start_ray: StartRay
    bootstrap: tuple[str, ...]
    artifacts_url: str = ""
    watch: DrainWatch | None = None
    boots: RayBoots | None = None


def parts_for(home: Home, settings: Settings) -> Parts:
    """The real parts of a head, none of them started. Raises: OperatorError if a store that is not ours does not
    answer, or could not be reached by the nodes that join, if Ray's own Redis or the artifacts' URL could not be used,
    or if the autoscaler's file is not there."""
    from cluster.store.embedded import EmbeddedServer
    from cluster.store.redis import RedisStore

    def start_ray(environ: Mapping[str, str], output: IO[bytes], http_port: int) -> RayNode:
        if boots is None:
            return ray_head.start(home, settings.ray, http_port, environ, output, RAY_START_S)
        ray_head.check_port(home, settings.ray)  # before the boot is tried: the port is no fault of it
        where = ray_head.stored(environ, settings.ray.fault_tolerance_url, boots.begin().boot.namespace)
        return ray_head.start(home, settings.ray, http_port, where, output, RAY_START_S)

    boots = boots_of(home, settings)
    if boots is not None:
        boots.check()
    check_usable(settings.artifacts.url)
    config = settings.ray.autoscaling_config
    if config and not Path(config).is_file():  # Ray's autoscaler would end at once, again and again, and add no node
        raise OperatorError(f"ray.autoscaling_config: {config} is not there; give the whole path")
    store: StoreServer | str = settings.store.url or os.environ.get("REDIS_URL", "")
    if isinstance(store, str) and store:
        check_shared(settings.ray.node_ip, store)
        outside = RedisStore(store, timeout_s=2.0)
        try:
            outside.epoch()
        finally:
            outside.close()
    else:
        store = EmbeddedServer(home.store_dir, home.run_dir, settings.store.server, host=settings.ray.node_ip)
    return Parts(store, start_ray, (sys.executable, "-m", "deployments.app"), boots=boots)


def boots_of(home: Home, settings: Settings) -> RayBoots | None:
    """The boots of the cluster whose head has this home; None without fault tolerance."""
    url = settings.ray.fault_tolerance_url
    if not url:
        return None
    return RayBoots(RayStorage.parse(url), home.secret("ray-token"), f"Prism {__version__} on Ray {ray_version()}")


def end_boot(home: Home) -> None:
    """End the boot of a fault-tolerant head that was taken down for good. Raises: OperatorError if Redis does not
    answer; InvalidRequest if the settings of the last start cannot be read."""
    if not home.held_head() or not home.settings_file.exists():  # a node that joined ends nobody's boot
        return
    boots = boots_of(home, read_settings(home.settings_file))
    if boots is not None:
        boots.end()
        boots.close()


def parts_to_join(home: Home, settings: Settings, document: JoinDocument) -> Parts:
    """The real parts of a node that joins, none of them started. Raises: OperatorError if it could not work here."""
    from cluster.store.redis import RedisStore

    def start_ray(environ: Mapping[str, str], output: IO[bytes], http_port: int) -> RayNode:
        check_reachable(document)  # Ray itself would try for long, and say little
        return ray_head.start(home, settings.ray, http_port, environ, output, RAY_START_S, join=document.address)

    check_reachable(document)
    document.keep_secrets(home)
    store = RedisStore(document.store_url, timeout_s=2.0)
    store.epoch()
    return Parts(
        store=document.store_url,
        start_ray=start_ray,
        bootstrap=(sys.executable, "-m", "cluster.probe"),
        artifacts_url=document.artifacts_url,
        watch=DrainWatch(store.nodes),
    )
