"""What every version store agrees on: what may be committed, how it is kept, and what a lost race is told."""

from __future__ import annotations

import time
import zlib
from dataclasses import replace

from cluster.documents import SCHEMA_VERSION, AuditEntry, ModelDocument, decode_document, encode
from cluster.errors import InvalidRequest, StaleRevision

MAX_DOCUMENT_BYTES = 1 << 20
MAX_HISTORY = 1000  # entries one call may ask for
KEPT_HISTORY = 10_000  # entries kept per model
MAX_TEXT = 1000  # characters of an operation, a name or a reason

REMOVE = "remove"  # the operation of the audit entry that a removal leaves; its document is the one removed


def pack(document: ModelDocument) -> bytes:
    """The bytes to keep: compressed JSON without revision and epoch, which the store keeps beside it.

    Compressed because the audit stream holds one per change, and class labels repeat from version to version.

    Raises: InvalidRequest if the document is larger than 1 MiB, or not of the schema version that is read here.
    """
    if document.schema_version != SCHEMA_VERSION:
        raise InvalidRequest(f"document.schema_version: expected {SCHEMA_VERSION}, got {document.schema_version}")
    raw = encode(replace(document, revision=0, epoch=""))
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise InvalidRequest(
            f"document: at most {MAX_DOCUMENT_BYTES} bytes, {document.name} with {len(document.versions)} versions "
            f"has {len(raw)}; unpublish versions that are no longer needed"
        )
    return zlib.compress(raw)


def unpack(kept: bytes, revision: int, epoch: str) -> ModelDocument:
    """The document that `pack` kept. Raises: InvalidRequest if it is none, or of another schema version."""
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(kept, MAX_DOCUMENT_BYTES)
    except zlib.error as error:
        raise InvalidRequest(f"document: {error}") from None
    return replace(decode_document(raw), revision=revision, epoch=epoch)


def next_mark(last: int, now_s: float) -> int:
    """The mark of a sanction after `last`: Unix time in microseconds, so that it is greater also where `last` was lost
    with the data set that held it."""
    return max(last + 1, int(now_s * 1e6))


def check_texts(operation: str, by: str, reason: str) -> None:
    """Raises: InvalidRequest, naming the text that is missing or too long."""
    if not operation:
        raise InvalidRequest("operation: expected a word, got ''")
    for name, text in (("operation", operation), ("by", by), ("reason", reason)):
        if len(text) > MAX_TEXT:
            raise InvalidRequest(f"{name}: at most {MAX_TEXT} characters, got {len(text)}")
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes of a command line that are no text
            raise InvalidRequest(f"{name}: expected text in UTF-8, got {text!r}") from None


def check_limit(limit: int) -> int:
    """`limit`, if it may bound a history. Raises: InvalidRequest."""
    if not 1 <= limit <= MAX_HISTORY:
        raise InvalidRequest(f"limit: expected 1 to {MAX_HISTORY}, got {limit}")
    return limit


def lost_race(model: str, revision: int, last: AuditEntry | None, yours: ModelDocument | None = None) -> StaleRevision:
    """What to tell the writer of a change that was made to `revision`, which is not the current one.

    Args:
        last: The newest change of the model, or None if the store knows no such model.
        yours: The document that was not written.
    """
    read_at = f"revision {revision}" if revision else "no such model yet"
    if last is None:
        return StaleRevision(
            f"{model}: the change was made to {read_at}, but the store has no such model now; nothing was written"
        )
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(last.at_s))
    now = "it was removed" if last.operation == REMOVE else f"its split is {shown(last.document)}"
    mine = f" (yours: {shown(yours)})" if yours else ""
    return StaleRevision(
        f"{model}: the change was made to {read_at}, but it is at revision {last.revision} now: "
        f"{last.by or 'somebody'} did {last.operation!r} at {at} and {now}{mine}; "
        "nothing was written, look at it again and repeat"
    )


def shown(document: ModelDocument) -> str:
    """The document's split in words."""
    return str(document.split) if document.split else "none"
