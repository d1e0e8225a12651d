"""What happens to Prism while a load test runs: a timeline of actions, checked before anything is started.

events:
  - {at_s: 10, action: kill-replica, model: "classifier:1"}
  - {at_s: 20, action: kill-store}
  - {at_s: 30, action: split, shares: "stable=90,newest=10"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from cluster.documents import ModelDocument
from cluster.errors import Conflict, InvalidRequest
from cluster.names import Target
from cluster.splits import TrafficSplit

Action = Literal["kill-replica", "kill-gateway", "kill-store", "scale", "split", "promote"]

# The fields each action takes, besides `at_s` and `action`.
TAKES: Mapping[str, tuple[str, ...]] = {
    "kill-replica": ("model",),
    "kill-gateway": (),
    "kill-store": (),
    "scale": ("model", "min_replicas", "max_replicas"),
    "split": ("model", "shares"),
    "promote": ("model",),
}
WORDS = ("stable", "newest")  # may stand for versions in `shares`


@dataclass(frozen=True, slots=True)
class Event:
    """One action, `at_s` seconds into the measured phases.

    `model` is name or name:version; "" is the model of the scenario's first target. `kill-replica` without a version
    kills one of whichever version has most replicas, `scale` and `promote` mean the newest READY one.
    """

    at_s: float
    action: Action
    model: str = ""
    shares: str = ""  # VERSION=PERCENT,...; a version may be `stable` (it has most traffic) or `newest`
    min_replicas: int | None = None
    max_replicas: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.at_s < float("inf"):
            raise InvalidRequest(f"events: at_s: expected seconds from 0, got {self.at_s}")
        if self.model:
            Target.parse(self.model)
        for each in fields(self):
            if each.name in ("at_s", "action") or each.name in TAKES[self.action]:
                continue
            if getattr(self, each.name) not in ("", None):
                takes = ", ".join(TAKES[self.action]) or "nothing more"
                raise InvalidRequest(f"events: {self.action} takes {takes}, not {each.name}")
        if self.action == "scale" and self.min_replicas is None and self.max_replicas is None:
            raise InvalidRequest("events: scale: min_replicas or max_replicas is missing")
        if self.action == "split":
            named_shares(self.shares)

    def __str__(self) -> str:
        bounds = [f"{n} {v}" for n, v in (("min", self.min_replicas), ("max", self.max_replicas)) if v is not None]
        return " ".join(part for part in (self.action, self.model, self.shares, *bounds) if part)


@dataclass(frozen=True, slots=True)
class Happened:
    """What an event came to. `at_s` counts from the start of the run, warm-up included; `error` is "" if done."""

    at_s: float
    name: str
    detail: str = ""
    error: str = ""


def check_times(events: tuple[Event, ...], duration_s: float) -> None:
    """Raises: InvalidRequest for an event that would come after the last phase."""
    for i, event in enumerate(events):
        if event.at_s >= duration_s:
            raise InvalidRequest(
                f"events[{i}].at_s: {event.action} at {event.at_s:g} s is after the end: phases last {duration_s:g} s"
            )


def named_shares(text: str) -> dict[str, str]:
    """`stable=90,newest=10` as {"stable": "90", "newest": "10"}; also with numbers. Raises: InvalidRequest."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, sep, percent = (piece.strip() for piece in part.partition("="))
        if not sep or not percent or not (name in WORDS or name.isdecimal()):
            raise InvalidRequest(
                f"events: split: shares: expected stable=90,newest=10 or VERSION=PERCENT,..., got {text!r}"
            )
        if name in found:
            raise InvalidRequest(f"events: split: shares: {name} is there twice")
        found[name] = percent
    TrafficSplit.parse(",".join(f"{i + 1}={percent}" for i, percent in enumerate(found.values())))  # adds up
    return found


def split_of(shares: str, document: ModelDocument, ready: frozenset[str]) -> TrafficSplit:
    """`shares` with its words replaced by the model's versions. Raises: Conflict, InvalidRequest."""
    named = named_shares(shares)
    meant = dict(zip(WORDS, _stable_and_newest(document, ready), strict=True))
    if set(named) >= set(WORDS) and meant["stable"] == meant["newest"]:
        raise Conflict(
            f"events: split: {document.name} has one READY version ({meant['stable']}), so newest is stable; "
            "deploy another one first"
        )
    return TrafficSplit.parse(",".join(f"{meant.get(name, name)}={percent}" for name, percent in named.items()))


def newest_ready(document: ModelDocument, ready: frozenset[str]) -> str:
    """Raises: Conflict if no version is READY."""
    return _stable_and_newest(document, ready)[1]


def _stable_and_newest(document: ModelDocument, ready: frozenset[str]) -> tuple[str, str]:
    if not ready:
        raise Conflict(f"events: {document.name} has no READY version")
    newest = max(ready, key=int)
    if document.split is None:
        return newest, newest
    return max(document.split.arms, key=lambda arm: arm.share_bp).version, newest
