"""What the autoscaling policy decided last, for the controller to read: in Ray's key-value store, which both reach."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import msgspec

_NAMESPACE = b"prism-scaling"
NOTE_EVERY_S = 5.0  # a note that stays the same is written again so often, so that an old one can be told
NOTE_VALID_S = 30.0


@dataclass(frozen=True, slots=True)
class Note:
    """What was decided for an application last.

    Attributes:
        wants: Replicas it would have without a limit set for others' sake.
        changed: The last change with its reason, such as `2 -> 4: up: ...`; "" before the first.
        at_s: Unix time of the writing.
    """

    wants: int
    changed: str = ""
    at_s: float = 0.0


def write_note(app: str, note: Note) -> None:
    """Keep a decision where `read_notes` finds it. Call it in a process that Ray started."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(app.encode(), msgspec.json.encode(asdict(note)), overwrite=True, namespace=_NAMESPACE)


def read_notes(apps: Iterable[str]) -> dict[str, Note]:
    """The last decision for each application that has one. Call it in a process that Ray started."""
    from ray.experimental.internal_kv import _internal_kv_get

    found: dict[str, Note] = {}
    for app in apps:
        raw = _internal_kv_get(app.encode(), namespace=_NAMESPACE)
        if raw:
            try:
                found[app] = msgspec.json.decode(raw, type=Note)
            except msgspec.DecodeError:  # another release's
                continue
    return found
