"""Free axes other than rows: the sizes that the user promises, and the calls that prove their edges.

Axes with the same number and the same range belong together (the tokens, mask and types of a text model); a group at
its largest is tried with the others at their smallest, and with all at their largest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.errors import InvalidRequest
from cluster.tensors import ANY, TensorSpec
from converters.candidate import Case

EDGE_ROWS = 3
EDGE = "edge"  # the beginning of an edge case's origin
TYPICAL = 16  # what random data has where a range allows it

_RANGE = re.compile(r"(.+):(\d+)=(\d+)\.\.(\d+)\Z")


@dataclass(frozen=True, slots=True)
class AxisRange:
    """Sizes from `low` to `high` on one axis of one input."""

    name: str
    axis: int
    low: int
    high: int

    @property
    def typical(self) -> int:
        return min(self.high, max(self.low, TYPICAL))

    def to_json(self) -> list[int]:
        return [self.low, self.high]


def parse_range(text: str) -> AxisRange:
    """`name:axis=min..max`, as in `ids:1=1..128`. Raises: InvalidRequest."""
    match = _RANGE.match(text)
    if not match or not 0 < int(match[3]) <= int(match[4]) or int(match[2]) == 0:
        raise InvalidRequest(
            f"dynamic: expected name:axis=min..max with an axis from 1 (axis 0 counts rows) and 1 <= min <= max, "
            f"got {text!r}"
        )
    return AxisRange(match[1], int(match[2]), int(match[3]), int(match[4]))


def parse_ranges(texts: Sequence[str]) -> tuple[AxisRange, ...]:
    """Every range. Raises: InvalidRequest, also for an axis that is stated twice."""
    found = tuple(map(parse_range, texts))
    axes = [(r.name, r.axis) for r in found]
    if len(set(axes)) != len(axes):
        raise InvalidRequest(f"dynamic: expected each axis once, got {list(texts)}")
    return found


def check_ranges(ranges: Sequence[AxisRange], specs: Sequence[TensorSpec]) -> None:
    """Raises: InvalidRequest if a range is for an input or axis that the model does not have free."""
    shapes = {spec.name: spec.shape for spec in specs}
    for r in ranges:
        if r.name not in shapes:
            raise InvalidRequest(f"dynamic: expected an input of {sorted(shapes)}, got {r.name!r}")
        if r.axis >= len(shapes[r.name]) or shapes[r.name][r.axis] != ANY:
            raise InvalidRequest(f"dynamic: {r.name}:{r.axis}: that axis is not free in {list(shapes[r.name])}")


def typical_sizes(ranges: Sequence[AxisRange], spec: TensorSpec) -> TensorSpec:
    """The spec with a size inside the range on each stated axis."""
    sizes = {r.axis: r.typical for r in ranges if r.name == spec.name}
    shape = tuple(sizes.get(i, d) if d == ANY else d for i, d in enumerate(spec.shape))
    return TensorSpec(spec.name, spec.dtype, shape)


def edge_cases(data: Mapping[str, np.ndarray], ranges: Sequence[AxisRange], rows: int | None) -> tuple[Case, ...]:
    """Calls at the edges of every group of axes, made of `data` repeated or cut along them.

    `rows` limits dimension 0; None leaves it as it is.
    """
    groups: dict[tuple[int, int, int], list[AxisRange]] = {}
    for r in ranges:
        groups.setdefault((r.axis, r.low, r.high), []).append(r)
    if not groups:
        return ()
    lowest = {key: key[1] for key in groups}
    highest = {key: key[2] for key in groups}
    choices = [lowest, highest]
    if len(groups) > 1:
        choices += [{**lowest, key: key[2]} for key in groups]
    found: list[Case] = []
    for choice in choices:
        sizes = {(r.name, r.axis): choice[key] for key, members in groups.items() for r in members}
        inputs = {name: _sized(array, name, sizes, rows) for name, array in data.items()}
        stated = ", ".join(f"{name}:{axis}={size}" for (name, axis), size in sizes.items())
        found.append(Case(f"{EDGE} {stated}", rows or 1, inputs))
    return tuple(found)


def unranged_notes(specs: Sequence[TensorSpec], ranges: Sequence[AxisRange], cases: Sequence[Case]) -> tuple[str, ...]:
    """The sizes at which free axes other than rows were proved, where nobody stated a range. Like axes share a note."""
    stated = {(r.name, r.axis) for r in ranges}
    groups: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape):
            if axis and size == ANY and (spec.name, axis) not in stated:
                sizes = tuple(sorted({case.inputs[spec.name].shape[axis] for case in cases}))
                groups.setdefault((axis, sizes), []).append(spec.name)
    return tuple(
        f"axis {axis} of {', '.join(names)} is free and was proved at {', '.join(map(str, sizes))} only: --dynamic "
        f"{names[0]}:{axis}=MIN..MAX{', and so for each,' if len(names) > 1 else ''} proves both ends of a range"
        for (axis, sizes), names in groups.items()
    )


def _sized(array: np.ndarray, name: str, sizes: Mapping[tuple[str, int], int], rows: int | None) -> np.ndarray:
    for axis in range(array.ndim):
        size = rows if axis == 0 and rows is not None else sizes.get((name, axis))
        if size is not None:
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return np.ascontiguousarray(array)
