"""What the pickled data of a TorchScript archive may hold.

torch reads it with a reader of its own, in C++, that builds tensors, lists and objects of the archive's classes and
calls nothing in Python. It also knows objects of other processes and of C++ extensions, and takes sizes on trust. So
every pickle is first read here, by Python's reader with stand-ins for whatever it names, which do nothing but check.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from converters.torch.script_code import plain_class

# The instructions that torch's reader knows too.
_OPCODES = frozenset(
    (
        *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND"),
        *("APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("GLOBAL", "NEWOBJ", "BUILD", "REDUCE", "BINPERSID"),
    )
)
_STORAGE_BYTES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "QInt8", "QUInt8"), 1),
    **dict.fromkeys(("Short", "Half", "BFloat16", "UInt16"), 2),
    **dict.fromkeys(("Int", "Float", "QInt32", "ComplexHalf", "UInt32"), 4),
    **dict.fromkeys(("Long", "Double", "ComplexFloat", "UInt64"), 8),
    "ComplexDouble": 16,
}
_ELEMENTS = {"build_intlist": int, "build_doublelist": float, "build_boollist": bool}
_SCHEMES = frozenset({"per_tensor_affine", "per_channel_affine", "per_channel_affine_float_qparams"})


class Refused(Exception):
    """The message says what was found."""


class _Value:
    """Stands in for an object of the archive's classes."""

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Fixed:
    """Cannot be changed by what a pickle says of it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise Refused("a state for what has none")


class _Tensor(_Fixed):
    """Stands in for a tensor, and for the storage it looks at. `size` counts its elements."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class _Element(_Fixed):
    """Stands in for what a storage is made of. torch's reader has numbers in its place, which a pickle may hold too."""

    __slots__ = ("size_bytes",)

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


class _Function(_Fixed):
    """Stands in for a function: `run` checks its arguments."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def __call__(self, *values: Any) -> Any:
        return self.run(*values)


class _Reader(pickle._Unpickler):
    """Python's own reader; the one in C makes room for as many values as a pickle claims to remember."""

    def __init__(self, content: bytes, records: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._records = records

    def find_class(self, module: str, name: str) -> Any:
        if plain_class(f"{module}.{name}"):
            return _Value
        if module == "torch" and name.removesuffix("Storage") in _STORAGE_BYTES:
            return _Element(_STORAGE_BYTES[name.removesuffix("Storage")])
        if module == "torch" and name in _SCHEMES:
            return name
        found = _CALLABLE.get((module, name))
        if found is None:
            raise Refused(f"{module}.{name}"[:80])
        return found

    def persistent_load(self, pid: Any) -> _Tensor:
        kind, element, key, _, count = pid
        if kind != "storage" or not isinstance(element, _Element) or type(count) is not int:
            raise Refused("a tensor of no plain storage")
        held = self._records.get(key, 0)
        if not 0 <= count * element.size_bytes <= held:
            raise Refused(f"a tensor of {count} elements of {element.size_bytes} bytes over {held} bytes")
        return _Tensor(count)


def check_pickle(content: bytes, records: Mapping[str, int]) -> None:
    """Raises: Refused for anything but plain data. `records` are sizes in bytes of what tensors may lie in, by key."""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in _OPCODES:
                raise Refused(f"the instruction {opcode.name}")
            if opcode.name == "LONG_BINPUT" and int(argument or 0) >= len(content):
                raise Refused("more values than it has bytes")
        _Reader(content, records).load()
    except Refused:
        raise
    except Exception as error:  # damaged pickles raise whatever they please
        raise Refused(f"no data that torch writes ({type(error).__name__})") from None


def _list(name: str) -> Callable[[Any], Any]:
    def build(values: Any) -> Any:
        wanted = _ELEMENTS.get(name, _Tensor)
        if not isinstance(values, list) or any(type(value) is not wanted for value in values):
            raise Refused(f"{name} of other values")
        return values

    return build


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Tensor) or len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise Refused("a tensor of no plain storage")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.size:
        raise Refused("a tensor larger than its storage")
    return storage


_CALLABLE: dict[tuple[str, str], Callable[..., Any]] = {
    **{("torch.jit._pickle", name): _Function(_list(name)) for name in (*_ELEMENTS, "build_tensorlist")},
    ("torch.jit._pickle", "restore_type_tag"): _Function(lambda value, kind: value),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_qtensor"): _Function(_tensor),
    ("collections", "OrderedDict"): _Value,
    ("builtins", "complex"): complex,
    ("torch", "device"): _Value,
}
