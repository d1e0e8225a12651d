"""Tensor and model specifications: names, dtypes, shapes, and which axis counts rows.

Data types are spelled as the Open Inference Protocol spells them (`FP32`, `INT64`, `BYTES`, ...;
"Tensor Data Types" in the protocol's required API). Tensors are row-major and little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from cluster.errors import InvalidRequest

# name -> (numpy dtype string, bytes per element; 0 = variable)
DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("?", 1),
    "UINT8": ("u1", 1),
    "UINT16": ("<u2", 2),
    "UINT32": ("<u4", 4),
    "UINT64": ("<u8", 8),
    "INT8": ("i1", 1),
    "INT16": ("<i2", 2),
    "INT32": ("<i4", 4),
    "INT64": ("<i8", 8),
    "FP16": ("<f2", 2),
    "FP32": ("<f4", 4),
    "FP64": ("<f8", 8),
    "BYTES": ("O", 0),
}

ANY = -1  # a dimension that may have any size


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: `shape` uses -1 for a free dimension; dimension 0 counts rows when the model is batched."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidRequest(f"{self.name}.dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if any(d < ANY for d in self.shape):
            raise InvalidRequest(f"{self.name}.shape: dimensions are sizes or -1, got {list(self.shape)}")

    @property
    def numpy(self) -> str:
        """The numpy dtype string (`"O"` for BYTES)."""
        return DTYPES[self.dtype][0]

    @property
    def item_bytes(self) -> int:
        """Bytes per element; 0 for BYTES."""
        return DTYPES[self.dtype][1]

    def admits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of `shape` (rows included) fits this spec."""
        return len(shape) == len(self.shape) and all(
            n == d or (d == ANY and n >= 0) for n, d in zip(shape, self.shape, strict=True)
        )

    def row_bytes(self) -> int | None:
        """Bytes of one row, or None where a free dimension or BYTES leaves it open."""
        tail = self.shape[1:]
        return None if self.item_bytes == 0 or ANY in tail else prod(tail) * self.item_bytes


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives, in the order the runtime uses.

    `batched` says that dimension 0 of every input and output counts rows, so that requests may share a call.
    `max_rows` bounds one request and one call of the engine; it is 1 for a model that is not batched, and a
    request to such a model counts as one row.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    max_rows: int

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs:
            raise InvalidRequest("signature: a model needs at least one input and one output")
        for side, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise InvalidRequest(f"signature.{side}: names must differ, got {names}")
        if self.max_rows < 1 or (not self.batched and self.max_rows != 1):
            raise InvalidRequest(f"signature.max_rows: {self.max_rows} with batched={self.batched}")
        if self.batched and any(not s.shape or s.shape[0] != ANY for s in (*self.inputs, *self.outputs)):
            raise InvalidRequest("signature: a batched model has a free dimension 0 in every input and output")
