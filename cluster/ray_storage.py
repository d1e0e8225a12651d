"""Where a head keeps what Ray must not forget: a Redis of Ray's own, by URL.

What Ray can do decides which URLs are taken: it speaks TCP, with or without TLS, to one server, and always uses
database 0 of it. It takes neither a Unix socket nor parameters; what TLS needs comes from Ray's variables
(`RAY_REDIS_CA_CERT`, `RAY_REDIS_CLIENT_CERT`, `RAY_REDIS_CLIENT_KEY`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from cluster.errors import InvalidRequest
from cluster.store.url import redacted

FIELD = "ray.fault_tolerance_url"
URL_VARIABLE = "PRISM_FAULT_TOLERANCE_URL"

DEFAULT_PORT = 6379


@dataclass(frozen=True, slots=True)
class RayStorage:
    """One Redis server, as Ray is told of it. Name and password never show in its text."""

    host: str
    port: int
    tls: bool = False
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> RayStorage:
        """Raises: InvalidRequest if Ray could not use the URL; the message holds no secret."""
        shown = redacted(url)

        def refused(expected: str) -> InvalidRequest:
            return InvalidRequest(f"settings.{FIELD}: expected {expected}, got {shown!r}")

        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or DEFAULT_PORT
        except ValueError:
            raise refused("redis://[[USER]:PASSWORD@]HOST[:PORT]") from None
        if parts.scheme not in ("redis", "rediss") or not host:
            raise refused("redis://[[USER]:PASSWORD@]HOST[:PORT] or rediss://, which is all that Ray takes")
        if parts.path.strip("/") not in ("", "0"):
            raise refused("no database number: Ray always uses database 0, so give it a server of its own")
        if parts.query or parts.fragment:
            raise refused("a URL without parameters; TLS is set by RAY_REDIS_CA_CERT and its like")
        if parts.username and not parts.password:
            raise refused("a password with the user name")
        return cls(host, port, parts.scheme == "rediss", unquote(parts.username or ""), unquote(parts.password or ""))

    @property
    def address(self) -> str:
        """As Ray wants it; holds no secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}"

    def client(self, timeout_s: float) -> Any:
        """A client of database 0, not connected yet; over TLS with the files that Ray is told of."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        tls: dict[str, Any] = {}
        if self.tls:
            files = {"ssl_ca_certs": "CA_CERT", "ssl_certfile": "CLIENT_CERT", "ssl_keyfile": "CLIENT_KEY"}
            tls = {"ssl": True, **{name: os.environ.get(f"RAY_REDIS_{of}") for name, of in files.items()}}
        return redis.Redis(
            host=self.host,
            port=self.port,
            username=self.username or None,
            password=self.password or None,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            protocol=2,
            **tls,
        )
