"""Which nodes a replica may run on, said by their labels: `accelerator-type=A100`, `zone=in(a,b)`, `spot=!true`.

The syntax of a value is Ray's for label selectors; names of labels that Ray itself sets may be written without their
prefix `ray.io/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cluster.errors import InvalidRequest

RAY_PREFIX = "ray.io/"
ID_LABEL = RAY_PREFIX + "node-id"
RAY_LABELS = (
    "accelerator-type",
    "availability-region",
    "availability-zone",
    "market-type",
    "node-group",
    "node-id",
)

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"(?:{_WORD}(?:\.{_WORD})*/)?{_WORD}")
_VALUE = re.compile(rf"(?P<no>!?)(?:(?P<one>{_WORD})|in\((?P<some>{_WORD}(?:,{_WORD})*)\))")


def parse_selectors(texts: Iterable[str]) -> dict[str, str]:
    """{label: value} from `LABEL=VALUE` each. Raises: InvalidRequest, naming the one that is not right."""
    selectors: dict[str, str] = {}
    for text in texts:
        label, equals, value = text.replace(" ", "").partition("=")
        if not equals:
            raise InvalidRequest(f"on: expected LABEL=VALUE such as accelerator-type=A100, got {text!r}")
        label = RAY_PREFIX + label if label in RAY_LABELS else label
        check_selector(label, value)
        if label in selectors:
            raise InvalidRequest(f"on: {label} was given twice; for one of several values write {label}=in(a,b)")
        selectors[label] = value
    return selectors


def check_selector(label: str, value: str) -> None:
    """Raises: InvalidRequest if Ray would not take it."""
    if not _LABEL.fullmatch(label):
        raise InvalidRequest(f"deploy.on: expected the name of a node label such as accelerator-type, got {label!r}")
    if not _VALUE.fullmatch(value):
        raise InvalidRequest(f"deploy.on[{label}]: expected value, !value, in(a,b) or !in(a,b), got {value!r}")


def check_node_label(label: str, value: str) -> None:
    """Raises: InvalidRequest if Ray would not take it as a label of a node."""
    if not _LABEL.fullmatch(label) or not re.fullmatch(_WORD, value):
        raise InvalidRequest(f"settings.ray.labels[{label}]: expected letters, digits, '_', '.' and '-', got {value!r}")


def selects(selectors: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with `labels` has everything that `selectors` ask for. A label it lacks has no value."""
    return all(_selects(value, labels.get(label)) for label, value in selectors.items())


def _selects(wanted: str, found: str | None) -> bool:
    parsed = _VALUE.fullmatch(wanted)
    assert parsed is not None
    values = (parsed["one"] or parsed["some"]).split(",")
    return (found in values) != bool(parsed["no"])


def shown(selectors: Mapping[str, str]) -> str:
    """For people: `accelerator-type=A100, zone=in(a,b)`."""
    return ", ".join(f"{label.removeprefix(RAY_PREFIX)}={value}" for label, value in sorted(selectors.items()))
