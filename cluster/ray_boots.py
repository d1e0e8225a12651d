"""Which Ray cluster a head goes on with: the boots of Prism in Ray's own Redis.

A boot is the life of one Ray cluster, from its first start to `prism down`. Its state lies in Redis under a namespace
of its own, so that nothing of an earlier boot is ever read. A head that ended in any other way (killed, its machine
lost, stopped as a service) is continued by the next one under the same namespace, wherever that runs: the boot is
written down in the same Redis, under a name made from the cluster's Ray token, which every head of the cluster has
and no other cluster.

    prism:boot:CLUSTER            string  the boot that came up last
    RAYprism-CLUSTER-BOOT@TABLE   hash    Ray's tables

A boot that cannot be continued never keeps a head from starting: after one attempt that failed, or two that were cut
short, a new boot begins.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b

import msgspec

from cluster.errors import OperatorError, ServingError
from cluster.ray_storage import FIELD, RayStorage

ATTEMPTS = 2
TIMEOUT_S = 3.0

_STORE_MARK = "prism:epoch"  # every version store has it: cluster.store.redis


@dataclass(frozen=True, slots=True)
class RayBoot:
    """One life of a Ray cluster. `software` is what it runs; `attempts`: how often it was continued since it last came
    up."""

    namespace: str
    software: str
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """The boot to start, whether it is an earlier one, and why an earlier one is not continued; "" if there is none."""

    boot: RayBoot
    continued: bool
    why: str = ""


def choose(found: RayBoot | None, software: str, namespace: str) -> Choice:
    """Go on with the boot that was found, or begin a new one under `namespace`.

    Args:
        software: What is installed here; what other versions of it wrote is not read.
    """
    fresh = RayBoot(namespace, software)
    if found is None:
        return Choice(fresh, continued=False)
    if found.software != software:
        return Choice(fresh, continued=False, why=f"it ran {found.software}, this is {software}")
    if found.attempts >= ATTEMPTS:
        return Choice(fresh, continued=False, why=f"{found.attempts} attempts came to nothing")
    return Choice(replace(found, attempts=found.attempts + 1), continued=True)


class RayBoots:
    """The boots of one cluster. Every method raises OperatorError, in one line, if Redis does not do its part.

    Args:
        token: The cluster's Ray token; only a hash of it is kept.
        software: The versions of what runs on it, in words.
    """

    def __init__(self, storage: RayStorage, token: str, software: str) -> None:
        self.storage = storage
        self._software = software
        cluster = blake2b(token.encode(), digest_size=6, person=b"prism-boot").hexdigest()
        self._prefix = f"prism-{cluster}-"
        self._key = f"prism:boot:{cluster}"
        self._redis = storage.client(TIMEOUT_S)
        self._choice: Choice | None = None
        self._given_up = ""

    def check(self) -> None:
        """Raises: OperatorError if Ray could not use the server, or its database is a version store's."""
        with self._answering():
            server = self._redis.info("server")
            mode = server.get("redis_mode") or server.get("server_mode")  # Redis' and Valkey's name of it
            if mode == "sentinel":
                raise self._error("is a sentinel; name the server itself")
            if mode == "cluster" and int(self._redis.execute_command("CLUSTER INFO")["cluster_size"]) > 1:
                raise self._error("is a cluster of several shards, which Ray does not take")
            if self._redis.exists(_STORE_MARK):
                raise self._error("is a version store's database; Ray needs a Redis of its own")
            probe = f"{self._key}:probe"
            self._redis.set(probe, "1", ex=60)  # a replica, or a user without the right to write, says so here
            self._redis.delete(probe)

    def begin(self) -> Choice:
        """The boot to start now; that it is tried is written down first."""
        found = None if self._given_up else self._found()
        choice = choose(found, self._software, self._prefix + secrets.token_hex(6))
        if self._given_up:
            choice = replace(choice, why=self._given_up)
        if choice.continued:
            self._keep(choice.boot)
        self._choice = choice
        return choice

    def give_up(self, why: str) -> bool:
        """Whether what failed was an earlier boot that was continued; the next `begin` is then a new one."""
        if self._choice is None or not self._choice.continued:
            return False
        self._given_up = why
        return True

    def told(self) -> str:
        """What has been started, in words for the operator."""
        if self._choice is not None and self._choice.continued:
            return "Ray ready, the cluster of the last head goes on"
        why = self._choice.why if self._choice is not None else ""
        return f"Ray ready, as a new cluster: the earlier one is not continued: {why}" if why else "Ray ready"

    def settle(self) -> None:
        """The boot has come up: it is the one to go on with, and what others of this cluster left is deleted."""
        if self._choice is None:
            return
        boot = replace(self._choice.boot, attempts=0)
        self._choice, self._given_up = replace(self._choice, boot=boot, continued=False), ""
        self._keep(boot)
        self._delete(lambda namespace: namespace != boot.namespace)

    def end(self) -> None:
        """Nothing of this cluster is left: the next boot is a new one."""
        with self._answering():
            self._redis.delete(self._key)
        self._delete(lambda _: True)

    def close(self) -> None:
        self._redis.close()

    def _found(self) -> RayBoot | None:
        with self._answering():
            raw = self._redis.get(self._key)
        try:
            return msgspec.json.decode(raw, type=RayBoot) if raw else None
        except msgspec.DecodeError:
            return None

    def _keep(self, boot: RayBoot) -> None:
        with self._answering():
            self._redis.set(self._key, msgspec.json.encode(asdict(boot)))

    def _delete(self, wanted: Callable[[str], bool]) -> None:
        """Ray's keys in the namespaces of this cluster that are `wanted`."""
        with self._answering():
            for key in self._redis.scan_iter(match=f"RAY{self._prefix}*", count=1000):
                namespace, _, table = key.decode(errors="replace").removeprefix("RAY").partition("@")
                if table and wanted(namespace):
                    self._redis.unlink(key)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        import redis

        try:
            yield
        except ServingError:
            raise
        except (redis.RedisError, OSError) as error:
            told = str(error) or type(error).__name__
            if self.storage.password:
                told = told.replace(self.storage.password, "***")
            if isinstance(error, redis.AuthenticationError):
                raise self._error(f"refuses the password: {told}") from None
            if isinstance(error, redis.ResponseError):
                raise self._error(f"refused: {told}") from None
            raise self._error(f"cannot be reached: {told}") from None

    def _error(self, what: str) -> OperatorError:
        return OperatorError(f"{FIELD}: {self.storage.address} {what}")
