"""Which inputs and outputs of two models belong together: those of one name, and what is left by its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.errors import ConversionFailed, InvalidRequest
from cluster.tensors import ANY, Signature, TensorSpec

Names = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Pairing:
    """Outputs to compare.

    Attributes:
        columns: By the first model's names, in its order: the places on both sides.
        failures: What the first has and nobody compares with, unless that was asked for.
        notes: What was paired by place, and what is left out.
    """

    columns: Mapping[str, tuple[int, int]]
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def pair_inputs(a: Signature, b: Signature) -> list[int]:
    """For each input of `a`, the input of `b` that takes the same: by name, otherwise by place.

    Raises: InvalidRequest if there is no such pairing, or dtypes differ.
    """
    places = {spec.name: i for i, spec in enumerate(b.inputs)}
    if set(places) == {spec.name for spec in a.inputs}:
        order = [places[spec.name] for spec in a.inputs]
    else:
        order = list(range(len(b.inputs)))
    pairs = [(spec, b.inputs[i]) for spec, i in zip(a.inputs, order, strict=False)]
    if len(a.inputs) != len(b.inputs) or any(x.dtype != y.dtype or len(x.shape) != len(y.shape) for x, y in pairs):
        raise InvalidRequest(f"compare: expected the same inputs, got {_brief(a.inputs)} and {_brief(b.inputs)}")
    return order


def pair_outputs(names: Names, a: Signature, b: Signature, asked: Sequence[str] = ()) -> Pairing:
    """Outputs of `a` with those of `b`.

    Those of one name belong together. What is left on both sides is paired by place, if it is equally many and could
    be the same; if not, what only `a` has is a failure: it is what `b` should have answered.

    Args:
        names: What the two are called, for people.
        asked: `name` or `name=name of b`: only these, and nothing else is missed.

    Raises:
        InvalidRequest: `asked` names what is not there.
        ConversionFailed: There is nothing to compare.
    """
    if asked:
        columns = _asked(names, a, b, asked)
        others = [spec.name for spec in a.outputs if spec.name not in columns]
        return Pairing(columns, notes=(f"left out by --output: {', '.join(others)}",) if others else ())
    places = {spec.name: i for i, spec in enumerate(b.outputs)}
    found = {i: places[spec.name] for i, spec in enumerate(a.outputs) if spec.name in places}
    ours = [i for i in range(len(a.outputs)) if i not in found]
    theirs = [j for j in range(len(b.outputs)) if j not in found.values()]
    notes: list[str] = []
    if ours and len(ours) == len(theirs):
        left = [(a.outputs[i], b.outputs[j]) for i, j in zip(ours, theirs, strict=True)]
        if all(_alike(x, y) for x, y in left):
            found |= dict(zip(ours, theirs, strict=True))
            notes.append(f"paired by their places: {', '.join(f'{x.name} with {y.name}' for x, y in left)}")
            ours, theirs = [], []
    if not found:
        raise ConversionFailed(
            f"nothing was compared: no output in common ({_brief(a.outputs)} and {_brief(b.outputs)}); "
            "--output NAME=NAME pairs two"
        )
    failures: tuple[str, ...] = ()
    if ours:
        missing = ", ".join(a.outputs[i].name for i in ours)
        hint = "--output NAME=NAME pairs outputs, and leaves out those it does not name"
        failures = (f"outputs that only {names[0]} has, not compared: {missing} ({hint})",)
    if theirs:
        notes.append(f"outputs that only {names[1]} has, not compared: {', '.join(b.outputs[j].name for j in theirs)}")
    return Pairing({a.outputs[i].name: (i, found[i]) for i in sorted(found)}, failures, tuple(notes))


def _asked(names: Names, a: Signature, b: Signature, asked: Sequence[str]) -> dict[str, tuple[int, int]]:
    ours, theirs = ({spec.name: i for i, spec in enumerate(side.outputs)} for side in (a, b))
    found: dict[str, tuple[int, int]] = {}
    for text in asked:
        mine, _, other = (text, "", "") if text in ours else text.partition("=")
        other = other or mine
        for name, side, whose in ((mine, ours, names[0]), (other, theirs, names[1])):
            if name not in side:
                raise InvalidRequest(f"output: expected one of {whose}, which has {', '.join(side)}; got {name!r}")
        if mine in found:
            raise InvalidRequest(f"output: expected each output of {names[0]} once, got {mine!r} again")
        found[mine] = (ours[mine], theirs[other])
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _alike(x: TensorSpec, y: TensorSpec) -> bool:
    """Whether answers of both can be compared: one kind of value, and sizes that may be equal."""
    kinds = {np.dtype(spec.numpy).kind for spec in (x, y)}
    sizes = len(x.shape) == len(y.shape) and all(
        d == e or ANY in (d, e) for d, e in zip(x.shape, y.shape, strict=False)
    )
    return len(kinds) == 1 and sizes


def _brief(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in specs)
