"""Joining a cluster from another machine: what the head hands over, and how.

The head's `prism up --node-ip` writes a join file into its home, readable by its owner only. The operator copies it to
the other machine over a channel that is safe (scp, a secret store); Prism itself never sends it. It holds every secret
of the cluster: whoever has it can do whatever an operator can.
"""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cluster import __version__
from cluster.errors import OperatorError
from cluster.home import Home, write_private
from cluster.settings import LOOPBACK, Boot, GatewaySettings
from cluster.storage import check_usable, local_path

DIAL_S = 5.0


@dataclass(frozen=True, slots=True)
class JoinDocument:
    """What a node needs to know of the cluster it joins. `address` is the head's, "host:port"."""

    address: str
    store_url: str
    artifacts_url: str
    ray_token: str
    admin_token: str
    wire_secret: str
    gateway: GatewaySettings
    prism: str = __version__

    @classmethod
    def of_head(cls, boot: Boot, ray_token: str) -> JoinDocument:
        """For the cluster of a running head."""
        return cls(
            address=boot.ray_address,
            store_url=boot.store_url,
            artifacts_url=boot.artifacts_url,
            ray_token=ray_token,
            admin_token=boot.admin_token,
            wire_secret=boot.wire_secret,
            gateway=boot.settings.gateway,
        )

    @classmethod
    def read(cls, file: Path) -> JoinDocument:
        """Raises: OperatorError if it is not there, others may read it, or another Prism version wrote it."""
        try:
            if file.stat().st_mode & 0o077:
                raise OperatorError(f"join: others may read {file}, which holds secrets; do: chmod 600 {file}")
            document = msgspec.json.decode(file.read_bytes(), type=cls)
        except FileNotFoundError:
            raise OperatorError(
                f"join: {file} is not there; copy join.json from the home of the head (its prism up --node-ip made it)"
            ) from None
        except OSError as error:
            raise OperatorError(f"join: {file}: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise OperatorError(f"join: {file} is no join file: {error}") from None
        if document.prism != __version__:
            raise OperatorError(
                f"join: {file} is of a cluster that runs Prism {document.prism}, this is {__version__}; install that, "
                "or copy the head's join.json again if the head has another Prism by now"
            )
        return document

    def write(self, file: Path) -> None:
        """Atomically, mode 0600."""
        write_private(file, msgspec.json.format(msgspec.json.encode(asdict(self)), indent=2).decode() + "\n")

    def keep_secrets(self, home: Home) -> None:
        """Make the cluster's secrets those of `home`, where every process of the node looks for them."""
        home.keep_secret("ray-token", self.ray_token)
        home.keep_secret("admin-token", self.admin_token)
        home.keep_secret("wire-secret", self.wire_secret)


def check_local(node_ip: str) -> None:
    """Raises: OperatorError if `node_ip` is no address of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in node_ip else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((node_ip, 0))
        except OSError as error:
            raise OperatorError(f"ray.node_ip: {node_ip} is no address of this machine: {error.strerror}") from None


def check_shared(node_ip: str, store_url: str) -> None:
    """Raises: OperatorError if a store at `store_url` could not be reached by the nodes that join a head at `node_ip`.

    Only what the addresses say is looked at.
    """
    host = (urlsplit(store_url).hostname or "") if "://" in store_url else ""
    if joinable(node_ip) and not is_loopback(node_ip) and (is_loopback(host) or store_url.startswith("unix:")):
        raise OperatorError(
            f"store: only this machine reaches {host or 'a Unix socket'}; name an address that the other nodes reach"
        )


def check_reachable(document: JoinDocument) -> None:
    """Raises: OperatorError or InvalidRequest if this machine cannot reach the head or the cluster's artifacts."""
    host, _, port = document.address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), DIAL_S).close()
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"address: {document.address} does not answer ({error}); is the head up, and its port open?"
        ) from None
    check_usable(document.artifacts_url)
    folder = local_path(document.artifacts_url)
    if folder is not None and not folder.is_dir():
        raise OperatorError(
            f"artifacts: {folder} is not there on this machine; share the folder, or have the head use a URL "
            "(settings: artifacts.url)"
        )


def outward_ip(address: str) -> str:
    """The address of this machine from which it reaches `address`, "host:port". Raises: OperatorError."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:  # connecting a datagram socket sends nothing
            probe.connect(target)
            return str(probe.getsockname()[0])
    except (OSError, ValueError) as error:
        raise OperatorError(f"address: expected HOST:PORT, got {address!r}: {error}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def joinable(node_ip: str) -> bool:
    """Whether other nodes can join a head at this address."""
    return node_ip != LOOPBACK
