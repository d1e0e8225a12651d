"""The inputs that a conversion is proved on: from the user's `.npz` files, or drawn at random from input specs."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.errors import InvalidRequest
from cluster.tensors import ANY, DTYPES, TensorSpec
from converters.candidate import Case, Options
from converters.proof import evaluation
from converters.ranges import EDGE_ROWS, check_ranges, edge_cases, parse_ranges, typical_sizes, unranged_notes

MAX_DATA_BYTES = 8 << 30  # unpacked
PROOF_ROWS = 64  # of each origin; more prove little more and cost the user's time
LARGER_ROWS = 8
MOST_BYTES = 256_000_000  # of input in the one call with the most rows, where those are more than PROOF_ROWS
CALIBRATION_ROWS = 8  # per call: enough to keep a core busy, small enough for memory
ROWS_SYMBOL = "N"

_DIMENSION = re.compile(r"([A-Za-z_]\w*)(?:=([1-9]\d*))?\Z")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input as the user states it. `axes` names the free dimensions, `shape` holds an example size for each."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axes: Mapping[int, str]


def parse_input(text: str) -> InputSpec:
    """`name:FP32:N,3,224,224`: N counts rows; other free axes say an example size, as in `ids:INT64:N,L=128`.

    Raises: InvalidRequest.
    """
    name, _, rest = text.partition(":")
    dtype, _, dims = rest.partition(":")
    if not name or dtype not in DTYPES or not dims:
        raise InvalidRequest(
            f"input: expected name:DTYPE:N,3,224,224 with DTYPE one of {', '.join(DTYPES)}, got {text!r}"
        )
    shape: list[int] = []
    axes: dict[int, str] = {}
    for i, part in enumerate(p.strip() for p in dims.split(",")):
        match = _DIMENSION.match(part)
        if part.isdecimal() and int(part) > 0:
            shape.append(int(part))
        elif match and (match[2] or (match[1] == ROWS_SYMBOL and i == 0)):
            axes[i] = match[1]
            shape.append(int(match[2] or 1))
        else:
            raise InvalidRequest(f"input {name}: expected sizes, N first, or names with a size (L=128), got {part!r}")
    return InputSpec(name, dtype, tuple(shape), axes)


def read_npz(path: Path, what: str) -> dict[str, np.ndarray]:
    """The arrays of an `.npz`, by name. Raises: InvalidRequest if it is missing, too large, or holds pickles."""
    if not path.is_file():
        raise InvalidRequest(f"{what}: {path} is not there")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_DATA_BYTES:
            raise InvalidRequest(f"{what}: {path.name} unpacks to {size} bytes, at most {MAX_DATA_BYTES} are read")
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: np.asarray(found[name], order="C") for name in found.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:  # sizes are what a header says
        raise InvalidRequest(f"{what}: {path.name} is not an .npz of plain arrays ({error})") from None
    if not arrays:
        raise InvalidRequest(f"{what}: {path.name} holds no arrays")
    for name, array in arrays.items():
        if array.size == 0:
            raise InvalidRequest(f"{what}: {name} of {path.name} has no elements (shape {list(array.shape)})")
    return arrays


def check_data(
    data: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], what: str, batched: bool
) -> dict[str, np.ndarray]:
    """`data` in the order of `specs`, cast where numpy calls it safe within the same kind.

    Raises: InvalidRequest, naming the input, if names, shapes, dtypes or row counts do not fit.
    """
    names = [spec.name for spec in specs]
    if sorted(data) != sorted(names):
        raise InvalidRequest(f"{what}: expected arrays {names}, got {sorted(data)}")
    found: dict[str, np.ndarray] = {}
    for spec in specs:
        array = data[spec.name]
        expected = [ANY, *spec.shape[1:]] if spec.shape else []
        fits = len(array.shape) == len(spec.shape) and all(
            n == d or d == ANY for n, d in zip(array.shape, expected, strict=True)
        )
        if not fits:
            raise InvalidRequest(f"{what}: {spec.name}: expected shape {expected}, got {list(array.shape)}")
        found[spec.name] = _cast(array, spec, what)
    counts = {name: array.shape[0] for name, array in found.items() if array.ndim}
    if batched and len(set(counts.values())) > 1:
        raise InvalidRequest(f"{what}: expected the same rows in every array, got {counts}")
    return found


def _cast(array: np.ndarray, spec: TensorSpec, what: str) -> np.ndarray:
    if spec.dtype == "BYTES":
        if array.dtype.kind not in "US":
            raise InvalidRequest(f"{what}: {spec.name}: expected text, got {array.dtype}")
        return array
    wanted = np.dtype(spec.numpy)
    if array.dtype == wanted:
        return array
    if array.dtype.kind == wanted.kind or np.can_cast(array.dtype, wanted):
        return np.ascontiguousarray(array.astype(wanted))
    raise InvalidRequest(f"{what}: {spec.name}: expected {spec.dtype} ({wanted}), got {array.dtype}")


def random_data(specs: Sequence[TensorSpec], rows: int, free: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays for `specs` with `rows` in a free dimension 0 and `free` in every other free dimension.

    Floats are standard normal; whole numbers are 0 or 1, which index any table.
    """
    draw = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for spec in specs:
        shape = tuple(d if d != ANY else (rows if i == 0 else free) for i, d in enumerate(spec.shape))
        if spec.dtype == "BYTES":
            found[spec.name] = np.full(shape, "a")
        elif spec.dtype.startswith("FP"):
            found[spec.name] = np.asarray(draw.standard_normal(shape), dtype=spec.numpy)
        else:
            found[spec.name] = np.asarray(draw.integers(0, 2, shape), dtype=spec.numpy)
    return found


def row_cases(data: Mapping[str, np.ndarray], origin: str, max_rows: int) -> tuple[Case, ...]:
    """Calls with 1 and 3 rows, with a larger count and with the most, cut from `data` (repeated if it is shorter).

    The most are `max_rows`, or as many as `MOST_BYTES` hold if those are fewer, but at least `PROOF_ROWS`.
    """
    have = next(iter(data.values())).shape[0]
    most = min(PROOF_ROWS, max(have, LARGER_ROWS))
    fitting = MOST_BYTES // max(1, sum(array.nbytes // have for array in data.values()))
    counts = {min(n, max_rows) for n in (1, 3, most, max(PROOF_ROWS, fitting))}
    calls = [range(n) for n in sorted(counts)]
    calls += [range(n, min(n + max_rows, most)) for n in range(max_rows, most, max_rows)]  # what max_rows cut off
    return tuple(Case(origin, len(rows), {name: take(array, rows) for name, array in data.items()}) for rows in calls)


def call_cases(data: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], origin: str) -> tuple[Case, ...]:
    """Calls of a model that is not batched: `data` as it is, or cut into pieces of the sizes that dimensions 0 have."""
    counts = {
        data[s.name].shape[0] // s.shape[0]
        if s.shape and s.shape[0] > 0 and not data[s.name].shape[0] % s.shape[0]
        else 0
        for s in specs
    }
    pieces = counts.pop() if len(counts) == 1 else 0
    if not pieces:
        return (Case(origin, 1, dict(data)),)
    return tuple(
        Case(origin, 1, {s.name: take(data[s.name], range(i * s.shape[0], (i + 1) * s.shape[0])) for s in specs})
        for i in range(min(pieces, PROOF_ROWS))
    )


def calibration_calls(path: Path, specs: Sequence[TensorSpec], batched: bool) -> tuple[Mapping[str, np.ndarray], ...]:
    """The calibration file's rows, each once, in calls of a few rows. Raises: InvalidRequest if it does not fit."""
    free = batched and all(spec.shape and spec.shape[0] == ANY for spec in specs)
    data = check_data(read_npz(path, "calibrate"), specs, "calibrate", free)
    if not free:
        return tuple(case.inputs for case in call_cases(data, specs, "calibration"))
    rows = next(iter(data.values())).shape[0]
    return tuple(
        {name: array[start : start + CALIBRATION_ROWS] for name, array in data.items()}
        for start in range(0, rows, CALIBRATION_ROWS)
    )


def take(array: np.ndarray, rows: range) -> np.ndarray:
    """These rows, counted around the end."""
    return np.ascontiguousarray(array[[row % array.shape[0] for row in rows]])


def user_data(options: Options) -> dict[str, dict[str, np.ndarray]]:
    """What the user gave, by origin: "sample", "calibration"."""
    found: dict[str, dict[str, np.ndarray]] = {}
    if options.sample is not None:
        found["sample"] = read_npz(options.sample, "sample")
    if options.calibrate is not None:
        found["calibration"] = read_npz(options.calibrate, "calibrate")
    return found


def cases_for(specs: Sequence[TensorSpec], options: Options, batched: bool, free: int = 1) -> tuple[Case, ...]:
    """The calls to prove a model on: the user's data, or random data where there is none.

    `free` is the size that random data has in free dimensions other than rows, unless the user states one.

    Raises: InvalidRequest if the data does not fit `specs`.
    """
    ranges = parse_ranges(options.dynamic)
    check_ranges(ranges, specs)
    given = user_data(options)
    if not given:
        stated = {spec.name: spec for spec in map(parse_input, options.inputs)}
        sized = [typical_sizes(ranges, _example(spec, stated.get(spec.name), batched)) for spec in specs]
        given = {"random": random_data(sized, LARGER_ROWS if batched else 1, free)}
    found: list[Case] = []
    edges: tuple[Case, ...] = ()
    for origin, data in given.items():
        what = "calibrate" if origin == "calibration" else origin
        checked = check_data(data, specs, what, batched)
        found += row_cases(checked, origin, options.max_rows) if batched else call_cases(checked, specs, origin)
        edges = edges or edge_cases(checked, ranges, min(EDGE_ROWS, options.max_rows) if batched else None)
    return (*found, *edges, *_evaluation_cases(specs, options, batched))


def cases_notes(cases: Sequence[Case], specs: Sequence[TensorSpec], options: Options, batched: bool) -> tuple[str, ...]:
    """Which edges of what `specs` and `options` allow no call of `cases` is at, and why."""
    notes = unranged_notes(specs, parse_ranges(options.dynamic), cases)
    largest = max(cases, key=lambda case: case.rows)
    if not batched or largest.rows >= options.max_rows:
        return notes
    size = sum(array.nbytes for array in largest.inputs.values()) / largest.rows * options.max_rows
    return (
        f"proved with up to {largest.rows} rows a call, of {options.max_rows} allowed: the input of so many has "
        f"{size / 1e6:.0f} MB, and a proof makes calls of at most {MOST_BYTES / 1e6:.0f} MB",
        *notes,
    )


def _evaluation_cases(specs: Sequence[TensorSpec], options: Options, batched: bool) -> tuple[Case, ...]:
    if options.evaluate is None:
        return ()
    inputs, labels = labelled(options.evaluate, [spec.name for spec in specs])
    data = check_data(inputs, specs, "evaluate", batched)
    rows = next(iter(data.values())).shape[0]
    if labels.ndim == 0 or labels.shape[0] != rows:
        raise InvalidRequest(f"evaluate: expected {rows} labels, one a row, got shape {list(labels.shape)}")
    return evaluation.calls(data, specs, batched, options.max_rows)


def labelled(path: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs and labels of an evaluation file. Raises: InvalidRequest."""
    return evaluation.split(read_npz(path, "evaluate"), names, path)


def _example(spec: TensorSpec, stated: InputSpec | None, batched: bool) -> TensorSpec:
    if stated is None:
        return spec
    if len(stated.shape) != len(spec.shape) or stated.dtype != spec.dtype:
        raise InvalidRequest(
            f"input {spec.name}: expected {spec.dtype} with {len(spec.shape)} dimensions, "
            f"got {stated.dtype} with {len(stated.shape)}"
        )
    shape = tuple(ANY if i == 0 and batched else s for i, s in enumerate(stated.shape))
    return TensorSpec(spec.name, spec.dtype, shape)
