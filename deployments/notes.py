"""What is kept of autoscaling's decisions.

Notes for the controller are in Ray's key-value store, which both reach; the policy's memory is in the process that
decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import msgspec

from cluster.policy.scale import Memory

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


_memories: dict[str, tuple[float, Memory]] = {}  # by application, with the time of the last decision


def remember(app: str, memory: Memory, now_s: float) -> None:
    """Keep the policy's memory for whoever decides next in this process; `now_s` is on a clock that never goes back."""
    _memories[app] = (now_s, memory)


def recalled(app: str, now_s: float) -> Memory:
    """What `remember` was told last of the application; nothing if that was so long ago that it has been away."""
    for stale in [name for name, (at_s, _) in _memories.items() if now_s - at_s > NOTE_VALID_S]:
        del _memories[stale]
    return _memories[app][1] if app in _memories else Memory()
