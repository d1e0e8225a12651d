"""How far a model's answers are from its source's, per output, and whether that is near enough.

Everything is computed in float64. Comparing nothing is a failure: no rows, no elements, or nothing but NaN prove
nothing. Floating outputs are judged by elements (`rel`, `abs_of_peak`, `max_share_out`), by signal to noise and by the
top class; whole numbers, booleans and text by the share of equal elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite, log10
from typing import Any

import numpy as np

from cluster.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What still counts as the same answer.

    Attributes:
        rel: Allowed difference relative to the source's value.
        abs_of_peak: Allowed difference relative to the largest absolute value of the source's output.
        max_share_out: Share of elements that may lie outside of `rel` and `abs_of_peak` together.
        min_sqnr_db: Least signal to quantisation noise ratio, in decibels.
        min_top1: Least share of rows with the same top class, and of equal elements in outputs of whole numbers.
        why: Where the numbers come from.
    """

    rel: float
    abs_of_peak: float
    max_share_out: float
    min_sqnr_db: float
    min_top1: float
    why: str


TOLERANCES = {
    "fp64": Tolerance(1e-6, 1e-9, 0.0, 100.0, 0.99, "the same arithmetic in another order"),
    "fp32": Tolerance(1e-3, 1e-5, 0.0, 60.0, 0.99, "the same arithmetic in another order, over many layers"),
    "fp16": Tolerance(1e-2, 5e-3, 0.01, 35.0, 0.97, "11 significant bits"),
    "bf16": Tolerance(5e-2, 2e-2, 0.01, 25.0, 0.95, "8 significant bits"),
    "int8": Tolerance(
        1e-1,
        5e-2,
        1.0,
        15.0,
        0.85,
        "8 bits per value: single elements may differ, the signal and the top class may not",
    ),
    "fp8": Tolerance(
        1e-1,
        5e-2,
        1.0,
        15.0,
        0.85,
        "4 significant bits per value: single elements may differ, the signal and the top class may not",
    ),
}

# A histogram's first column counts elements without any error; the column of decade d those with a relative error above
# 10^(d-1), up to 10^d. What is smaller or larger goes to the ends.
HISTOGRAM_DECADES = tuple(range(-10, 3))

_OPTIONS = {
    "rel": "rel",
    "abs": "abs_of_peak",
    "share": "max_share_out",
    "sqnr": "min_sqnr_db",
    "top1": "min_top1",
}


def tolerance_for(precision: str, overrides: Mapping[str, float] | None = None) -> Tolerance:
    """The tolerance of a precision, with what the user overrides. Raises: InvalidRequest for an unknown key."""
    base = TOLERANCES.get(precision, TOLERANCES["fp32"])
    if not overrides:
        return base
    changed: dict[str, Any] = {_OPTIONS[key]: value for key, value in overrides.items()}
    stated = ", ".join(f"{key}={value:g}" for key, value in sorted(overrides.items()))
    return replace(base, **changed, why=f"{base.why}; overridden: {stated}")


def parse_tolerance(text: str) -> dict[str, float]:
    """`rel=1e-3,abs=1e-5,share=0,sqnr=20,top1=0.9` (any part of it). Raises: InvalidRequest."""
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = inf
        if key not in _OPTIONS or not isfinite(value):
            raise InvalidRequest(f"tolerance: expected {'=..., '.join(_OPTIONS)}=NUMBER, got {part!r}")
        found[key] = value
    return found


@dataclass(frozen=True, slots=True)
class OutputParity:
    """One output, over all cases. `failures` is empty when it is near enough.

    `top1` is None unless the output looks like a classifier's ([n, k], floating, k >= 2); the float measures are None
    for whole numbers and text. `histogram` counts elements by relative error (see `HISTOGRAM_DECADES`); it is empty
    where the float measures are None.
    """

    name: str
    elements: int
    worst_abs: float | None
    worst_rel: float | None
    share_out: float
    sqnr_db: float | None
    cosine: float | None
    top1: float | None
    failures: tuple[str, ...]
    histogram: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Parity:
    """A whole comparison, as `parity.json` keeps it."""

    kind: str
    precision: str
    tolerance: Tolerance
    cases: tuple[dict[str, Any], ...]
    outputs: tuple[OutputParity, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        if not self.outputs:
            return ("nothing was compared: there are no outputs",)
        return tuple(f"{output.name}: {text}" for output in self.outputs for text in output.failures)

    def to_json(self) -> dict[str, Any]:
        """Plain values; infinities as null, which JSON does not have."""
        outputs = [
            {k: (None if isinstance(v, float) and not isfinite(v) else v) for k, v in asdict(o).items()}
            for o in self.outputs
        ]
        return {
            "kind": self.kind,
            "precision": self.precision,
            "passed": not self.failures,
            "tolerance": asdict(self.tolerance),
            "cases": list(self.cases),
            "outputs": outputs,
        }


def compare(name: str, expected: Sequence[np.ndarray], got: Sequence[np.ndarray], tolerance: Tolerance) -> OutputParity:
    """One output in several cases: `expected[i]` is the source's array in case i, `got[i]` the candidate's."""
    problem = _unlike(expected, got)
    if problem:
        return OutputParity(name, 0, None, None, 1.0, None, None, None, (problem,))
    if all(array.dtype.kind == "f" for array in (*expected, *got)):
        return _compare_floats(name, expected, got, tolerance)
    return _compare_exact(name, expected, got, tolerance)


def _unlike(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> str | None:
    if len(expected) != len(got):
        return f"expected {len(expected)} cases, got {len(got)}"
    for e, g in zip(expected, got, strict=True):
        if e.shape != g.shape:
            return f"expected shape {list(e.shape)}, got {list(g.shape)}"
        if (e.dtype.kind == "f") != (g.dtype.kind == "f"):
            return f"expected {e.dtype}, got {g.dtype}"
    if sum(e.size for e in expected) == 0:
        return "nothing was compared: the outputs have no elements"
    return None


def _compare_exact(
    name: str, expected: Sequence[np.ndarray], got: Sequence[np.ndarray], tolerance: Tolerance
) -> OutputParity:
    differ = total = 0
    for e, g in zip(expected, got, strict=True):
        differ += sum(_text(a) != _text(b) for a, b in zip(e.ravel().tolist(), g.ravel().tolist(), strict=True))
        total += e.size
    share = differ / total
    allowed = max(tolerance.max_share_out if tolerance.max_share_out < 1 else 0.0, 1 - tolerance.min_top1)
    failures = (f"{share:.2%} of {total} values differ, at most {allowed:.2%} may",) if share > allowed else ()
    return OutputParity(name, total, None, None, share, None, None, None, failures)


def _text(item: Any) -> Any:
    """Bytes of a text, also of one that was made of bytes that are no UTF-8 (`converters.worker`)."""
    return item.encode(errors="surrogateescape") if isinstance(item, str) else item


def _compare_floats(
    name: str, expected: Sequence[np.ndarray], got: Sequence[np.ndarray], tolerance: Tolerance
) -> OutputParity:
    e = np.concatenate([array.astype(np.float64).ravel() for array in expected])
    g = np.concatenate([array.astype(np.float64).ravel() for array in got])
    failures: list[str] = []
    if not np.array_equal(np.isnan(e), np.isnan(g)):
        failures.append(f"NaN in {int(np.isnan(g).sum())} elements, in {int(np.isnan(e).sum())} of the source")
    infinite = np.isinf(e) | np.isinf(g)
    if not np.array_equal(e[infinite], g[infinite]):
        failures.append("infinities where the source has none, or the other way round")
    usable = np.isfinite(e) & np.isfinite(g)
    if not usable.any():
        failures.append("nothing was compared: no finite elements in common")
        return OutputParity(name, int(e.size), None, None, 1.0, None, None, None, tuple(failures))
    top1 = _top1(expected, got)
    e, g = e[usable], g[usable]
    difference = np.abs(e - g)
    peak = float(np.abs(e).max())
    floor = tolerance.abs_of_peak * peak
    share = float((difference > floor + tolerance.rel * np.abs(e)).mean())
    scale = np.maximum(np.abs(e), max(floor, np.finfo(np.float64).tiny))
    sqnr, cosine = _sqnr_db(e, e - g), _cosine(e, g)
    if share > tolerance.max_share_out:
        failures.append(
            f"{share:.2%} of {e.size} elements are off by more than {floor:.3g} + {tolerance.rel:g} x value "
            f"(worst {difference.max():.3g}), at most {tolerance.max_share_out:.2%} may be"
        )
    if sqnr < tolerance.min_sqnr_db:
        failures.append(f"signal to noise {sqnr:.1f} dB, at least {tolerance.min_sqnr_db:g} dB are needed")
    if top1 is not None and top1 < tolerance.min_top1:
        failures.append(
            f"top class agrees in {top1:.1%} of rows, at least {tolerance.min_top1:.1%} must "
            "(of an embedding, which has no classes, ask for --tolerance top1=0)"
        )
    return OutputParity(
        name,
        int(e.size),
        float(difference.max()),
        float((difference / scale).max()),
        share,
        sqnr,
        cosine,
        top1,
        tuple(failures),
        _histogram(difference / scale),
    )


def _sqnr_db(signal: np.ndarray, noise: np.ndarray) -> float:
    """10 log10 of signal power over noise power; infinite without noise."""
    noise_power = float(np.square(noise).sum())
    signal_power = float(np.square(signal).sum())
    if noise_power == 0:
        return inf
    return 10 * log10(signal_power / noise_power) if signal_power > 0 else -inf


def _histogram(errors: np.ndarray) -> tuple[int, ...]:
    wrong = errors[errors > 0]
    decades = np.ceil(np.log10(wrong)).clip(HISTOGRAM_DECADES[0], HISTOGRAM_DECADES[-1]).astype(int)
    counts = np.bincount(decades - HISTOGRAM_DECADES[0], minlength=len(HISTOGRAM_DECADES))
    return (int(errors.size - wrong.size), *(int(n) for n in counts))


def _cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 else None


def _top1(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float | None:
    if any(array.ndim != 2 or array.shape[1] < 2 for array in expected):
        return None
    same = [np.argmax(e, axis=1) == np.argmax(g, axis=1) for e, g in zip(expected, got, strict=True)]
    return float(np.concatenate(same).mean())
