"""How models, versions and labels are named: `name`, `name:version`, `name@label`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.errors import InvalidRequest

# Names end up in URLs, Redis keys, file names and Ray actor names, so they are kept plain.
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\Z")
_VERSION = re.compile(r"[1-9][0-9]{0,8}\Z")
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,39}\Z")


def check_model(name: str) -> str:
    """`name`, if it may name a model. Raises: InvalidRequest."""
    if not _MODEL.match(name) or ".." in name:
        raise InvalidRequest(f"model: expected letters, digits, '_', '.', '-' (at most 100), got {name!r}")
    return name


def check_version(version: str) -> str:
    """`version`, if it may name a version: a positive whole number, as TensorFlow Serving and Triton count them."""
    if not _VERSION.match(version):
        raise InvalidRequest(f"version: expected a positive whole number such as 3, got {version!r}")
    return version


def check_label(label: str) -> str:
    """`label`, if it may name a label. Raises: InvalidRequest."""
    if not _LABEL.match(label):
        raise InvalidRequest(f"label: expected lower-case letters, digits, '_', '-' (at most 40), got {label!r}")
    return label


@dataclass(frozen=True, slots=True)
class Target:
    """What a request or a command is addressed to. At most one of `version` and `label` is set."""

    model: str
    version: str | None = None
    label: str | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """`name`, `name:version` or `name@label`. Raises: InvalidRequest."""
        if ":" in text:
            model, version = text.split(":", 1)
            return cls(check_model(model), version=check_version(version))
        if "@" in text:
            model, label = text.split("@", 1)
            return cls(check_model(model), label=check_label(label))
        return cls(check_model(text))

    def __str__(self) -> str:
        tail = f":{self.version}" if self.version else f"@{self.label}" if self.label else ""
        return self.model + tail
