"""The version store in Redis or Valkey (6.2 or later).

    prism:epoch              string  identity of this data set
    prism:sanction           string  the mark of the last sanction (none: never)
    prism:models             set     names ever used
    prism:{model}:document   hash    revision, epoch, document (none: removed)
    prism:{model}:statuses   hash    version -> what the controller reported
    prism:{model}:audit      stream  revision, operation, by, reason, request, at_s, document
    prism:commits            channel "model revision", a hint

`cluster.store.nodes` keeps its own keys beside these.

A model's keys share a hash tag, so one script changes them together. A name is added to the set before its first
commit and never taken out, because set and model may live in different slots of a cluster.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.documents import AuditEntry, ModelDocument, VersionStatus, decode_status, encode
from cluster.errors import InvalidRequest, ModelNotFound, ServingError, StoreUnavailable
from cluster.names import check_model
from cluster.store.commits import KEPT_HISTORY, REMOVE, check_limit, check_texts, lost_race, next_mark, pack, unpack
from cluster.store.hints import Hints
from cluster.store.nodes import RedisNodes
from cluster.store.url import redacted

EPOCH, SANCTION, MODELS, CHANNEL = "prism:epoch", "prism:sanction", "prism:models", "prism:commits"


class RedisStore:
    """Implements `cluster.store.VersionStore`. Nothing is connected before the first call.

    Every command has `timeout_s`. A connection found closed, as all are after the server was restarted, is replaced
    at once and the command repeated, a commit under the same request id: it is never done twice.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.5) -> None:
        """Raises: InvalidRequest if `url` is none that the client understands."""
        self._url = redacted(url)
        self._secret = unquote(urlsplit(url).password or "") if "://" in url else ""
        again = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        never = Retry(NoBackoff(), 0)
        try:
            self._redis = _client(url, timeout_s, again)
            self._hints = Hints(_client(url, timeout_s, never), CHANNEL)
        except (ValueError, TypeError) as error:
            told = self._without_secret(str(error))
            raise InvalidRequest(
                f"store url: expected redis://, rediss:// or unix://, got {self._url!r}: {told}"
            ) from None
        self._commit_script = self._redis.register_script(_script("commit.lua"))
        self._report_script = self._redis.register_script(_script("report.lua"))
        self._nodes = RedisNodes(self._redis, self._answering, CHANNEL)

    @property
    def nodes(self) -> RedisNodes:
        return self._nodes

    def epoch(self) -> str:
        with self._answering():
            found = self._redis.get(EPOCH)
            if found is None:
                self._redis.set(EPOCH, uuid.uuid4().hex, nx=True)
                found = self._redis.get(EPOCH)
        if found is None:
            raise StoreUnavailable(f"the version store at {self._url} does not keep what is written to it")
        return str(found.decode())

    def models(self) -> tuple[str, ...]:
        return tuple(sorted(self.revisions()))

    def revisions(self) -> dict[str, int]:
        with self._answering():
            names = sorted(name.decode() for name in self._redis.smembers(MODELS))
            found: dict[str, int] = {}
            for start in range(0, len(names), 1000):
                some = names[start : start + 1000]
                pipe = self._redis.pipeline(transaction=False)
                for name in some:
                    pipe.hget(_key(name, "document"), "revision")
                    pipe.hexists(_key(name, "document"), "document")
                answers = pipe.execute()
                for name, revision, there in zip(some, answers[::2], answers[1::2], strict=True):
                    if there:
                        found[name] = int(revision)
        return found

    def read(self, model: str) -> ModelDocument:
        check_model(model)
        with self._answering():
            revision, epoch, kept = self._redis.hmget(_key(model, "document"), "revision", "epoch", "document")
        if kept is None:
            raise ModelNotFound(f"there is no model {model!r}")
        return unpack(kept, int(revision), epoch.decode())

    def swap(self, new: ModelDocument, operation: str, by: str, reason: str = "", *, above: int = 0) -> ModelDocument:
        check_texts(operation, by, reason)
        kept = pack(new)
        epoch = new.epoch or self.epoch()
        if new.revision == 0:
            with self._answering():
                self._redis.sadd(MODELS, new.name)
        revision = self._commit(new, epoch, kept, operation, by, reason, above)
        return unpack(kept, revision, epoch)

    def remove(self, document: ModelDocument, by: str, reason: str = "") -> None:
        check_texts(REMOVE, by, reason)
        self._commit(document, document.epoch or self.epoch(), b"", REMOVE, by, reason)

    def history(self, model: str, limit: int = 100) -> tuple[AuditEntry, ...]:
        check_model(model)
        check_limit(limit)
        with self._answering():
            found = self._redis.xrevrange(_key(model, "audit"), count=limit)
            epoch = self._redis.hget(_key(model, "document"), "epoch")
        if not found:
            raise ModelNotFound(f"there never was a model {model!r}")
        return tuple(_entry(fields, (epoch or b"").decode()) for _, fields in found)

    def statuses(self, model: str) -> dict[str, VersionStatus]:
        check_model(model)
        with self._answering():
            found = self._redis.hgetall(_key(model, "statuses"))
        return {version.decode(): decode_status(raw) for version, raw in found.items()}

    def report(self, model: str, statuses: dict[str, VersionStatus]) -> None:
        check_model(model)
        arguments = [part for version, status in statuses.items() for part in (version, encode(status))]
        with self._answering():
            self._report_script(keys=[_key(model, "document"), _key(model, "statuses")], args=arguments)

    def sanctioned(self) -> int:
        with self._answering():
            return int(self._redis.get(SANCTION) or 0)

    def sanction(self) -> int:
        with self._answering():
            seconds, microseconds = self._redis.time()
            mark = next_mark(int(self._redis.get(SANCTION) or 0), seconds + microseconds / 1e6)
            self._redis.set(SANCTION, mark)
            self._redis.publish(CHANNEL, f"sanction {mark}")
        return mark

    def wait(self, timeout_s: float) -> bool:
        """As the interface says. While the store cannot be reached, False after `timeout_s`; True when it is back."""
        return self._hints.wait(timeout_s)

    def durability_warnings(self) -> tuple[str, ...]:
        """As the interface says, by the server's configuration; () if it does not say."""
        with self._answering():
            try:
                found = {
                    name: value
                    for pattern in ("appendonly", "maxmemory-policy")
                    for name, value in self._redis.config_get(pattern).items()  # text in every client version
                }
            except redis.ResponseError:  # managed servers forbid CONFIG
                return ()
        told = []
        if found.get("appendonly") == "no":
            told.append("appendonly is off: what was committed last may be lost when the server stops")
        if found.get("maxmemory-policy", "noeviction") != "noeviction":
            told.append(f"maxmemory-policy is {found['maxmemory-policy']}: a full server may drop models")
        return tuple(told)

    def close(self) -> None:
        self._hints.close()
        self._redis.close()

    def _commit(
        self, document: ModelDocument, epoch: str, kept: bytes, operation: str, by: str, reason: str, above: int = 0
    ) -> int:
        """The revision that was written. Raises: StaleRevision."""
        name = document.name
        keys = [_key(name, part) for part in ("document", "audit", "statuses")]
        request = uuid.uuid4().hex
        arguments = [document.revision, epoch, kept, operation, by, reason, request, KEPT_HISTORY, CHANNEL, name, above]
        with self._answering("; whether the change was written is not known, look before repeating it"):
            written, revision, *last = self._commit_script(keys=keys, args=arguments)
        if written:
            return int(revision)
        fields = _pairs(last[0]) if last and last[0] else None
        entry = _entry(fields, epoch) if fields else None
        raise lost_race(name, document.revision, entry, document)

    @contextmanager
    def _answering(self, on_silence: str = "") -> Iterator[None]:
        """Whatever goes wrong with the server as StoreUnavailable, without secrets.

        `on_silence` is added if the command may have been carried out though no answer came.
        """
        try:
            yield
        except ServingError:
            raise
        except redis.AuthenticationError as error:
            raise StoreUnavailable(
                f"the version store at {self._url} refuses the password: {self._told(error)}"
            ) from None
        except redis.ResponseError as error:
            raise StoreUnavailable(f"the version store at {self._url} refused: {self._told(error)}") from None
        except (redis.RedisError, OSError) as error:
            silence = on_silence if isinstance(error, redis.TimeoutError) else ""
            raise StoreUnavailable(
                f"the version store at {self._url} cannot be reached: {self._told(error)}{silence}"
            ) from None

    def _told(self, error: Exception) -> str:
        return self._without_secret(str(error) or type(error).__name__)

    def _without_secret(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text


def _client(url: str, timeout_s: float, retry: Retry) -> Any:
    """A client with explicit limits: the defaults may block for half a minute. RESP2, which every server speaks."""
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=retry,
        protocol=2,
    )


def _script(name: str) -> str:
    return resources.files("cluster.store").joinpath(name).read_text()


def _key(model: str, part: str) -> str:
    return f"prism:{{{model}}}:{part}"


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _entry(fields: dict[bytes, bytes], epoch: str) -> AuditEntry:
    revision = int(fields[b"revision"])
    return AuditEntry(
        revision=revision,
        operation=fields[b"operation"].decode(),
        by=fields[b"by"].decode(),
        at_s=float(fields[b"at_s"]),
        reason=fields[b"reason"].decode(),
        document=unpack(fields[b"document"], revision, epoch),
    )
