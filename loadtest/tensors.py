"""The tensors a load test sends: taken from a sample, or random in the shape that the model's metadata gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cluster.artifact import SAMPLE
from cluster.errors import InvalidRequest
from cluster.tensors import ANY, TensorSpec

Array = NDArray[Any]


def read_sample(source: str) -> dict[str, Array]:
    """Arrays by input name: from an `.npz` file, the sample in an artifact's folder, or a `.json` file that holds a
    request of the Open Inference Protocol. No pickle is read.

    Raises: InvalidRequest.
    """
    file = Path(source)
    if file.is_dir():
        file = file / SAMPLE
    if file.suffix == ".json":
        return _from_request(file)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (AttributeError, TypeError):
        raise InvalidRequest(f"sample: {file}: expected .npz with an array per input, got one array") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"sample: {file}: {reason}") from None


def from_sample(
    inputs: Sequence[TensorSpec], sample: Mapping[str, Array], rows: int, variants: int
) -> list[dict[str, Array]]:
    """`variants` sets of inputs with `rows` rows each, going through the sample's rows again and again.

    Raises: InvalidRequest if an input is missing or has another shape.
    """
    sets = []
    for variant in range(variants):
        tensors = {}
        for spec in inputs:
            if spec.name not in sample:
                raise InvalidRequest(f"sample: no array for input {spec.name!r}, it has {', '.join(sample) or 'none'}")
            array = sample[spec.name]
            if _counts_rows(spec):
                if array.ndim == 0 or len(array) == 0:
                    raise InvalidRequest(f"sample.{spec.name}: expected at least one row")
                array = array[(variant * rows + np.arange(rows)) % len(array)]
            if not spec.admits(array.shape):
                raise InvalidRequest(f"sample.{spec.name}: expected {list(spec.shape)}, got {list(array.shape)}")
            tensors[spec.name] = array if spec.dtype == "BYTES" else _as(spec, array)
        sets.append(tensors)
    return sets


def generated(
    model: str, inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]], rows: int, variants: int, seed: int
) -> list[dict[str, Array]]:
    """`variants` sets of random inputs with `rows` rows each: the same ones for the same seed.

    Raises: InvalidRequest where only a sample can tell: BYTES inputs, and free dimensions that `shapes` leaves open.
    """
    for name in shapes:
        if name not in {spec.name for spec in inputs}:
            raise InvalidRequest(f"shapes.{name}: model {model} has inputs {', '.join(s.name for s in inputs)}")
    plain: list[tuple[TensorSpec, tuple[int, ...]]] = []
    for spec in inputs:
        if spec.dtype == "BYTES":
            raise InvalidRequest(f"model {model}: input {spec.name!r} is BYTES and cannot be generated; give a sample")
        head, tail = ((rows,), spec.shape[1:]) if _counts_rows(spec) else ((), spec.shape)
        tail = tuple(shapes.get(spec.name, tail))
        if ANY in tail:
            raise InvalidRequest(
                f"model {model}: input {spec.name!r} has free dimensions {list(spec.shape)}; give a sample or shapes"
            )
        if not spec.admits(head + tail):
            raise InvalidRequest(f"shapes.{spec.name}: expected {list(spec.shape)}, got {list(head + tail)}")
        plain.append((spec, head + tail))
    rng = np.random.default_rng(seed)
    return [{spec.name: _random(spec, shape, rng) for spec, shape in plain} for _ in range(variants)]


def _from_request(file: Path) -> dict[str, Array]:
    try:
        request = json.loads(file.read_bytes())
        return {
            item["name"]: np.array(item["data"], dtype=TensorSpec(item["name"], item["datatype"], ()).numpy).reshape(
                item["shape"]
            )
            for item in request["inputs"]
        }
    except OSError as error:
        raise InvalidRequest(f"sample: {file}: {error.strerror}") from None
    except KeyError as error:
        raise InvalidRequest(
            f"sample: {file}: inputs need name, datatype, shape and data; {error} is missing"
        ) from None
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"sample: {file}: {error}") from None


def _as(spec: TensorSpec, array: Array) -> Array:
    """`array` in the spec's type. Raises: InvalidRequest for one that would lose what it says, such as 0.5 as INT64."""
    if not (np.can_cast(array.dtype, spec.numpy, casting="same_kind") or _fits(spec, array)):
        raise InvalidRequest(f"sample.{spec.name}: expected {spec.dtype}, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=spec.numpy)


def _fits(spec: TensorSpec, array: Array) -> bool:
    """Whether integers of another kind (all of them, in this array) are values of the spec's type."""
    wanted = np.dtype(spec.numpy)
    if array.dtype.kind not in "iu" or wanted.kind not in "iu":
        return False
    bounds = np.iinfo(wanted)
    return array.size == 0 or bool(array.min() >= bounds.min and array.max() <= bounds.max)


def elements(array: Array) -> list[bytes]:
    """The elements of a BYTES tensor in row-major order."""
    return [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1).tolist()]


def _counts_rows(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape[0] == ANY


def _random(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if spec.dtype == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    if spec.dtype.startswith("FP"):
        return rng.random(shape, dtype=np.float32).astype(spec.numpy)
    # Small values are valid wherever an integer is an index into a table.
    return rng.integers(0, 2, shape).astype(spec.numpy)
