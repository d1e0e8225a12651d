"""The Ray node of one home, a head or one that joins a head, started as a process of its own.

Without further settings it is reachable from this machine only. `ray start` is not used: it cannot leave out the Ray
client server (another port that speaks pickle), and on the loopback address it insists on the machine's outward one.
This module starts the same `Node` with what Prism needs: GCS, raylet and the node's agents, every port chosen by the
kernel, so that two homes never meet. A head that others join keeps its port, so that they find it again after a
restart. Ray's version is pinned because `Node` is not public.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from cluster.errors import OperatorError
from cluster.home import Home
from cluster.join import joinable
from cluster.ray_storage import URL_VARIABLE, RayStorage
from cluster.settings import BOOT_VARIABLE, LOOPBACK, Boot, RaySettings

NAMESPACE = "prism"

# Ray's labels of a node: the HTTP port of its door, and whether it has a gateway also while no replica runs there.
DOOR_LABEL, GATEWAY_LABEL = "prism-door", "prism-gateway"
ALWAYS, WITH_REPLICAS = "always", "with-replicas"

_LOG_BYTES = 16 << 20
_AUTOSCALER = "monitor"  # Ray's name of its process
_AUTOSCALER_PAUSE_S = 10.0
_METRIC_PORT_VARIABLE = "AUTOSCALER_METRIC_PORT"  # Ray's

# Variables of the user's own Ray work that would lead our processes, or theirs, to the wrong cluster.
_FOREIGN = (
    "RAY_ADDRESS",
    "RAY_NAMESPACE",
    "RAY_REDIS_ADDRESS",
    "RAY_external_storage_namespace",
    "RAY_AUTH_TOKEN",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
)

# How a head's own process is told of Ray's Redis: no command line shows it, and nothing that it starts inherits it.
_STORAGE_VARIABLE = "PRISM_RAY_STORAGE"

_FLAGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Despite its name: "0" makes Ray stay on the loopback address, on any system.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # SIGTERM means stop now: what must drain has been drained before.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # While the head is away, the other nodes go on answering; a head that comes back has them join it anew.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3600",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # What Ray costs while nothing happens: fewer reports, no idle spare workers, a slower (0.1 s) control loop.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_event_stats": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # Ray would run its workers at niceness 15: gateways and replicas would wait for whatever else the machine does.
    "RAY_worker_niceness": "0",
    "RAY_ROTATION_MAX_BYTES": str(_LOG_BYTES),
    "RAY_ROTATION_BACKUP_COUNT": "2",
}


def environment(home: Home) -> dict[str, str]:
    """What every process that is, or joins, the home's Ray cluster has in its environment. Holds no secret."""
    return {
        **_FLAGS,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home.secret_file("ray-token")),
        BOOT_VARIABLE: str(home.boot_file),
    }


def own_environment(home: Home, base: Mapping[str, str]) -> dict[str, str]:
    """`base` with the home's Ray settings, without what belongs to another cluster or to the supervisor only."""
    kept = {name: value for name, value in base.items() if name not in (*_FOREIGN, URL_VARIABLE)}
    return {**kept, **environment(home)}


def stored(environ: Mapping[str, str], url: str, namespace: str) -> dict[str, str]:
    """The environment of a head that keeps Ray's state at `url`, under `namespace`."""
    return {**environ, _STORAGE_VARIABLE: url, "RAY_external_storage_namespace": namespace}


def ray_version() -> str:
    """The version of Ray that is installed."""
    return version("ray")


def connect(boot: Boot) -> None:
    """Join the cluster as a driver; once per process. Raises: OperatorError if it does not answer.

    Ray reads part of its environment when it is imported, so a process that has imported Ray before must have been
    started with `own_environment`.
    """
    home = Home(Path(boot.home))
    wanted = environment(home)
    if "ray" in sys.modules and any(os.environ.get(name) != value for name, value in wanted.items()):
        raise OperatorError("ray: it was imported before the environment of this Prism was set")
    for name in _FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(wanted)
    import ray

    try:
        ray.init(
            address=boot.ray_address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level="warning",
            configure_logging=True,
            include_dashboard=None,
        )
    except (ConnectionError, RuntimeError) as error:
        raise OperatorError(f"ray: {boot.ray_address} does not answer: {error}") from None


@dataclass(frozen=True, slots=True)
class RayNode:
    """A running node: its process, the address at which others join the cluster, and its id ("" if not known)."""

    process: subprocess.Popen[bytes]
    address: str
    id: str = ""


def start(
    home: Home,
    settings: RaySettings,
    http_port: int,
    environ: Mapping[str, str],
    output: IO[bytes],
    timeout_s: float,
    join: str = "",
) -> RayNode:
    """Start a node in a session of its own and wait until it takes work.

    Args:
        http_port: Where this node's door listens.
        environ: The node's environment: `own_environment`, marked; a fault-tolerant head's is `stored` besides.
        output: Where the node's output goes.
        join: The head's address, "host:port"; "": be a head.

    Raises:
        OperatorError: A head's port is taken, and nothing was started; or the node ended, or was not ready within
            `timeout_s`, and has been killed.
    """
    if not join:
        check_port(home, settings)
    command = [
        sys.executable,
        "-m",
        "cluster.ray_head",
        "--home",
        str(home),
        "--settings",
        json.dumps({**asdict(settings), "fault_tolerance_url": ""}),
        "--http-port",
        str(http_port),
        "--join",
        join,
    ]
    node = start_command(command, environ, output, timeout_s)
    if not join and joinable(settings.node_ip):
        home.ray_port_file.write_text(node.address.rpartition(":")[2])
    return node


def start_command(command: list[str], environ: Mapping[str, str], output: IO[bytes], timeout_s: float) -> RayNode:
    """`start` for any command that writes "ADDRESS ID" to the descriptor named by `--ready-fd` once it is ready."""
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [*command, "--ready-fd", str(writing)],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(writing,),
        )
    finally:
        os.close(writing)
    os.set_blocking(reading, False)
    deadline_s = time.monotonic() + timeout_s
    told = b""
    try:
        while not told.endswith(b"\n"):
            if process.poll() is not None:
                raise OperatorError(
                    f"ray: the node ended with exit code {process.returncode} before it was ready (log: {output.name})"
                )
            if time.monotonic() > deadline_s:
                process.kill()
                process.wait()
                raise OperatorError(f"ray: the node was not ready within {timeout_s:.0f} s (log: {output.name})")
            try:
                told += os.read(reading, 4096)
            except BlockingIOError:
                time.sleep(0.02)
    finally:
        os.close(reading)
    address, _, id = told.decode().strip().partition(" ")
    return RayNode(process, address, id)


def main() -> int:
    """The node's own process: start the node, say where it is, and end when one of its parts does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--join", required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    arguments = parser.parse_args()
    os.set_inheritable(arguments.ready_fd, False)
    url = os.environ.pop(_STORAGE_VARIABLE, "")
    storage = RayStorage.parse(url) if url else None
    settings = RaySettings(**arguments.settings)
    node = _node(Home(arguments.home), settings, arguments.http_port, arguments.join, storage)
    with os.fdopen(arguments.ready_fd, "w") as ready:
        print(arguments.join or node.address, node.node_id, file=ready)
    dead = watch(node)
    print("ray: ended:", ", ".join(f"{kind} (exit code {process.returncode})" for kind, process in dead), flush=True)
    return 1


def watch(node: Any, pause: Callable[[float], None] = time.sleep) -> list[tuple[str, Any]]:
    """Wait until a part of the node ends that it cannot do without; (kind, process) of each that has ended.

    The autoscaler is not one of them: what is served goes on without it, and it is started again.
    """
    started_s = 0.0
    while True:
        dead = node.dead_processes()
        if any(kind != _AUTOSCALER for kind, _ in dead):
            return [(kind, process) for kind, process in dead if kind != _AUTOSCALER]
        if dead and time.monotonic() - started_s > _AUTOSCALER_PAUSE_S:
            print(f"ray: the autoscaler ended (exit code {dead[0][1].returncode}) and is started again", flush=True)
            started_s = time.monotonic()
            del node.all_processes[_AUTOSCALER]
            node.start_monitor()
        pause(0.5)


def _node(home: Home, settings: RaySettings, http_port: int, join: str, storage: RayStorage | None) -> Any:
    from ray._private import services
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class PrismNode(Node):  # type: ignore[misc]
        """A node that leaves out the dashboard's process, unless it is asked for."""

        _node_ip_address: Any

        def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
            if include_dashboard:
                super().start_api_server(include_dashboard=True, raise_on_failure=raise_on_failure)

        def start_monitor(self) -> None:
            """The autoscaler, without the port on which Ray has it tell its figures to anybody: that port is the same
            for all homes of a machine. An operator who wants it chooses one."""
            ip = self._node_ip_address
            if _METRIC_PORT_VARIABLE not in os.environ:
                self._node_ip_address = None  # Ray's own way to say: no figures
            try:
                super().start_monitor()
            finally:
                self._node_ip_address = ip

        def start_gcs_server(self) -> None:
            """Ray would put the password into command lines, also of every worker: this process has used it by now,
            and the GCS server, the other one that needs it, is told where to look for it."""
            if storage is None:
                super().start_gcs_server()
                return
            self._ray_params.redis_username = self._ray_params.redis_password = ""
            secret = {"redis_username": storage.username, "redis_password": storage.password}
            start_process = services.start_ray_process

            def start(command: list[str], *more: Any, **named: Any) -> Any:
                known = {f"FLAGS_{name}": value for name, value in secret.items() if value}
                told = [f"--fromenv={','.join(name for name, value in secret.items() if value)}"] if known else []
                return start_process([*command, *told], *more, **named, env_updates=known)

            services.start_ray_process = start
            try:
                super().start_gcs_server()
            finally:
                services.start_ray_process = start_process

    head: dict[str, Any] = {"gcs_server_port": _gcs_port(home, settings)}
    if storage is not None:
        head |= {
            "external_addresses": [storage.address],
            "redis_username": storage.username,
            "redis_password": storage.password,
        }
    return PrismNode(
        RayParams(
            node_ip_address=settings.node_ip,
            num_cpus=settings.num_cpus or None,
            num_gpus=settings.num_gpus or None,
            object_store_memory=settings.object_store_bytes,
            labels={
                **settings.labels,
                DOOR_LABEL: str(http_port),
                GATEWAY_LABEL: ALWAYS if settings.idle_gateway else WITH_REPLICAS,
            },
            temp_dir=str(home.ray_dir),
            include_dashboard=settings.dashboard,
            dashboard_host=LOOPBACK,
            dashboard_port=None,
            dashboard_agent_listen_port=0,
            include_log_monitor=False,  # drivers do not print what workers write
            autoscaling_config=settings.autoscaling_config or None,
            no_monitor=not settings.autoscaling_config,  # nothing else here adds nodes
            **({"gcs_address": join} if join else head),
        ),
        head=not join,
        shutdown_at_exit=True,
        spawn_reaper=True,
    )


def check_port(home: Home, settings: RaySettings) -> None:
    """Raises: OperatorError if the port that the head will have is taken; Ray would try for long, and say little."""
    ip, port = settings.node_ip, _gcs_port(home, settings)
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Ray does; connections of the last run linger
        try:
            probe.bind((ip, port))
        except OSError as error:
            way_out = "choose another: settings, ray.port"
            if not settings.port:
                way_out = f"free it, or delete {home.ray_port_file} and hand out the new join.json"
            raise OperatorError(f"ray.port: cannot listen on {ip}:{port}: {error.strerror} ({way_out})") from None


def _gcs_port(home: Home, settings: RaySettings) -> int:
    """The head's port: the one that was asked for, else where others may know it, the one it had; 0: any."""
    if settings.port or not joinable(settings.node_ip):
        return settings.port
    try:
        return int(home.ray_port_file.read_text())
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
