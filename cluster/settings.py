"""Settings an operator may choose, checked on construction, and what `prism up` hands to the processes it starts.

Only entry points read files; everything else is handed plain values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from cluster.errors import InvalidRequest
from cluster.ray_storage import URL_VARIABLE, RayStorage
from cluster.selectors import check_node_label

LOOPBACK = "127.0.0.1"
BOOT_VARIABLE = "PRISM_BOOT"  # names the boot file of the node that a process runs on


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The gateway's HTTP side. Times in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_body_bytes: int = 64 << 20
    max_header_bytes: int = 64 << 10
    header_timeout_s: float = 10.0  # from the first byte of a request to the end of its headers
    body_timeout_s: float = 60.0  # from the end of its headers to the end of its body
    write_timeout_s: float = 60.0  # a client that does not read its answer for so long is closed
    keep_alive_s: float = 75.0
    max_connections: int = 4096
    max_json_depth: int = 100


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """The port is kept free for the gRPC services."""

    port: int = 9000


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Each gateway process. Queue bounds count what waits in one gateway for one version."""

    replicas: int = 1
    max_waiting_rows: int = 4096
    max_waiting_bytes: int = 256 << 20
    max_deadline_s: float = 300.0
    in_flight_per_replica: int = 2  # micro-batches
    poll_s: float = 1.0
    log_sample: float = 0.0  # share of requests that get a line in `logs/requests.jsonl`


@dataclass(frozen=True, slots=True)
class RaySettings:
    """The Ray node that `prism up` starts. 0 CPUs means: as many as the machine has.

    `node_ip` is the address at which other nodes reach this one; on the loopback default no other can join. `port` is
    the head's, where nodes join; 0: any free one, and then the same after every restart. Without `idle_gateway`, a
    joined node has a gateway only while replicas run there, so that Ray's autoscaler may take the node away.
    `labels` are what `prism deploy --on` selects nodes by. `autoscaling_config`, on a head, is the file by which Ray's
    cluster launcher says which nodes to add; with it, Ray's autoscaler runs beside the head. `fault_tolerance_url`, on
    a head, is a Redis of Ray's own: with it, the nodes of a head that was lost go on under the next one.
    """

    num_cpus: int = 0
    num_gpus: int = 0  # 0: what Ray detects
    node_ip: str = LOOPBACK
    port: int = 0
    idle_gateway: bool = True
    labels: dict[str, str] = field(default_factory=dict)
    autoscaling_config: str = ""
    grows: bool = False  # on a head: something else, such as KubeRay's autoscaler, adds nodes while replicas wait
    object_store_bytes: int = 200 << 20
    dashboard: bool = False
    fault_tolerance_url: str = ""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where desired state lives. Without `url`: REDIS_URL, else the embedded server."""

    url: str = ""
    server: Literal["auto", "bundled", "path"] = "auto"


@dataclass(frozen=True, slots=True)
class ArtifactSettings:
    """Where published artifacts are kept: a folder or any fsspec URL. Without `url`: `artifacts/` in the home."""

    url: str = ""


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What all replicas together may use; versions that want more share it by weight and priority.

    0: what the nodes have; no limit where nodes are added when replicas wait (`ray.autoscaling_config`, `ray.grows`).
    """

    cpus: float = 0.0
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `prism up --config FILE` accepts."""

    http: HttpSettings = field(default_factory=HttpSettings)
    grpc: GrpcSettings = field(default_factory=GrpcSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    ray: RaySettings = field(default_factory=RaySettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    artifacts: ArtifactSettings = field(default_factory=ArtifactSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("http.port", 0 <= self.http.port <= 65535, "0 to 65535"),
            ("grpc.port", 0 <= self.grpc.port <= 65535, "0 to 65535"),
            ("http.max_body_bytes", self.http.max_body_bytes >= 1024, "at least 1024"),
            ("gateway.replicas", 1 <= self.gateway.replicas <= 64, "1 to 64"),
            ("gateway.in_flight_per_replica", 1 <= self.gateway.in_flight_per_replica <= 64, "1 to 64"),
            ("gateway.max_waiting_rows", self.gateway.max_waiting_rows >= 1, "at least 1"),
            ("gateway.max_waiting_bytes", self.gateway.max_waiting_bytes >= 1024, "at least 1024"),
            ("gateway.max_deadline_s", self.gateway.max_deadline_s > 0, "above 0"),
            ("gateway.poll_s", 0.01 <= self.gateway.poll_s <= 60, "0.01 to 60"),
            ("gateway.log_sample", 0 <= self.gateway.log_sample <= 1, "0 to 1"),
            ("ray.port", 0 <= self.ray.port <= 65535, "0 to 65535"),
            ("ray.node_ip", _is_address(self.ray.node_ip), "an IP address"),
            ("ray.num_cpus", self.ray.num_cpus >= 0, "0 or more"),
            ("ray.num_gpus", self.ray.num_gpus >= 0, "0 or more"),
            ("limits.cpus", self.limits.cpus >= 0, "0 or more"),
            ("limits.gpus", self.limits.gpus >= 0, "0 or more"),
            ("ray.object_store_bytes", self.ray.object_store_bytes >= 80 << 20, "at least 83886080"),
        ):
            if not ok:
                raise InvalidRequest(f"settings.{name}: expected {expected}")
        for label, value in self.ray.labels.items():
            check_node_label(label, value)
        if self.ray.fault_tolerance_url:
            RayStorage.parse(self.ray.fault_tolerance_url)


def _is_address(text: str) -> bool:
    try:
        return not ip_address(text).is_unspecified
    except ValueError:
        return False


def with_environment(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """`settings` of a head with the URL that only the environment names. Raises: InvalidRequest."""
    url = environ.get(URL_VARIABLE, "")
    if settings.ray.fault_tolerance_url or not url:
        return settings
    return replace(settings, ray=replace(settings.ray, fault_tolerance_url=url))


def read_settings(file: Path | None, base: Settings = Settings()) -> Settings:
    """From a YAML file; what it does not name, or everything without a file, is as in `base`.

    Raises: InvalidRequest, naming an unknown key or a wrong type.
    """
    if file is None:
        return base
    try:
        raw = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InvalidRequest(f"settings: {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"settings: {file}: {' '.join(str(error).split())}") from None
    return settings_from(raw or {}, base)


def settings_from(raw: Any, base: Settings = Settings()) -> Settings:
    """From plain values over those of `base`. Raises: InvalidRequest, naming an unknown key or a wrong type."""
    _refuse_unknown(raw, Settings, "settings")
    whole = {name: {**section, **raw.get(name, {})} for name, section in asdict(base).items()}
    try:
        return msgspec.convert(whole, Settings)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"settings: {error}") from None


def _refuse_unknown(raw: Any, kind: Any, path: str) -> None:
    if not isinstance(raw, dict):
        raise InvalidRequest(f"{path}: expected a mapping, got {type(raw).__name__}")
    known = {f.name: f for f in fields(kind)}
    for key, value in raw.items():
        if key not in known:
            raise InvalidRequest(f"{path}.{key}: unknown; expected one of {', '.join(known)}")
        section: Any = known[key].default_factory
        if is_dataclass(section):
            _refuse_unknown(value, section, f"{path}.{key}")


@dataclass(frozen=True, slots=True)
class Boot:
    """What the processes on one node need to know; kept in a file only its owner can read.

    `run_dir` is a short path for sockets. `door` is the Unix socket that hands out the HTTP listening socket.
    `node_ip` is where other nodes reach this one, "" where there can be none. `store_url` may hold a password, and the
    tokens are secrets: none of these is ever logged.
    """

    home: str
    run_dir: str
    door: str
    store_url: str
    artifacts_url: str
    ray_address: str
    admin_token: str
    wire_secret: str
    http_port: int
    grpc_port: int
    settings: Settings
    node_ip: str = ""

    def write(self, file: Path) -> None:
        """Atomically, mode 0600."""
        temporary = file.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(asdict(self), stream, indent=2)
        temporary.replace(file)

    @classmethod
    def read(cls, file: str | Path) -> Boot:
        """Raises: InvalidRequest if the file is not there or not a boot file."""
        try:
            return msgspec.json.decode(Path(file).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise InvalidRequest(f"boot: {file}: {error}") from None

    @classmethod
    def of_this_node(cls) -> Boot:
        """For processes that Ray starts. Raises: InvalidRequest if the node was not started by Prism."""
        file = os.environ.get(BOOT_VARIABLE, "")
        if not file:
            raise InvalidRequest(f"boot: {BOOT_VARIABLE} is not set: this node was not started by prism up")
        return cls.read(file)
