"""Dataclasses from the plain values of a YAML file, where every complaint names the field it is about."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from cluster.errors import InvalidRequest

T = TypeVar("T")


def read(kind: type[T], raw: Any, path: str) -> T:
    """`raw` as a `kind`, whose fields may be dataclasses and tuples of dataclasses.

    Raises: InvalidRequest, naming an unknown or missing field, or one of the wrong type.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest(f"{path}: expected a mapping, got {_shown(raw)}")
    hints = _hints(kind)  # type: ignore[arg-type]
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for name in raw:
        if name not in known:
            raise InvalidRequest(f"{path}.{name}: unknown; expected one of {', '.join(known)}")
    missing = [
        name for name, f in known.items() if name not in raw and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise InvalidRequest(f"{path}.{missing[0]}: missing")
    return kind(**{name: _value(hints[name], value, f"{path}.{name}") for name, value in raw.items()})


def _value(hint: Any, raw: Any, path: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return read(hint, raw, path)
    if get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]):
        if not isinstance(raw, list):
            raise InvalidRequest(f"{path}: expected a list, got {_shown(raw)}")
        return tuple(read(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(raw))
    try:
        return msgspec.convert(raw, hint)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{path}: {str(error).replace('`', '')}") from None


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _shown(raw: Any) -> str:
    return "nothing" if raw is None else type(raw).__name__
