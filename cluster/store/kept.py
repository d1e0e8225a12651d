"""All documents of a version store in one file: what a reader has read last, and what a backup is.

A line with the SHA-256 of the rest, then JSON. Written in one step, so that whoever reads it never sees half of it.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec

from cluster.documents import SCHEMA_VERSION, ModelDocument, decode_document, encode
from cluster.errors import InvalidRequest, ModelNotFound
from cluster.store import VersionStore


@dataclass(frozen=True, slots=True)
class Kept:
    """A store's documents as they were at `at_s` (Unix time) in the data set `epoch`, whose last sanction was `mark`.

    Every document has its revision and is of this epoch.
    """

    epoch: str
    at_s: float
    documents: tuple[ModelDocument, ...] = ()
    mark: int = 0


@dataclass(frozen=True, slots=True)
class _File:
    epoch: str
    at_s: float
    documents: list[str]
    mark: int = 0
    schema_version: int = SCHEMA_VERSION


def read_kept(file: Path) -> Kept:
    """Raises: InvalidRequest if the file cannot be read, is damaged, or another Prism wrote it."""
    try:
        checksum, _, payload = file.read_bytes().partition(b"\n")
        if checksum.decode("ascii", "replace") != hashlib.sha256(payload).hexdigest():
            raise InvalidRequest(f"{file}: the checksum does not match; it is damaged, or holds something else")
        found = msgspec.json.decode(payload, type=_File)
    except OSError as error:
        raise InvalidRequest(f"{file}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{file}: {error}") from None
    if found.schema_version != SCHEMA_VERSION:
        raise InvalidRequest(f"{file}: schema_version: this Prism reads {SCHEMA_VERSION}, got {found.schema_version}")
    return Kept(found.epoch, found.at_s, tuple(decode_document(raw) for raw in found.documents), found.mark)


def write_kept(file: Path, kept: Kept) -> None:
    """In one step, whoever else writes the same file; its folder is made if need be. Raises: OSError."""
    documents = [encode(document).decode() for document in kept.documents]
    payload = msgspec.json.encode(asdict(_File(kept.epoch, kept.at_s, documents, kept.mark)))
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as stream:
            stream.write(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def back_up(store: VersionStore) -> Kept:
    """What the store holds now. Raises: StoreUnavailable; InvalidRequest for a document that another Prism wrote."""
    epoch, documents = store.epoch(), []
    for model in store.models():
        try:
            documents.append(store.read(model))
        except ModelNotFound:  # removed since it was listed
            continue
    return Kept(epoch, time.time(), tuple(documents), store.sanctioned())


def restore(store: VersionStore, kept: Kept, by: str, reason: str = "") -> tuple[str, ...]:
    """Write the documents of `kept` into the store as changes of their own, and have readers take them.

    A model that is there as it was kept is left alone, one that is only in the store too. Every revision written is
    above the one that was kept, and numbers of versions go on above those of either side.

    Returns: Names of the models that were written.
    Raises: StaleRevision if somebody else changed a model meanwhile; doing it again goes on from there.
    """
    written = []
    for then in kept.documents:
        try:
            now = store.read(then.name)
        except ModelNotFound:
            now = ModelDocument(then.name)
        new = replace(
            then, revision=now.revision, epoch=now.epoch, next_version=max(then.next_version, now.next_version)
        )
        if new != now or now.revision < then.revision:
            store.swap(new, "restore", by, reason, above=then.revision)
            written.append(then.name)
    store.sanction()
    return tuple(written)
