"""What `converters.tensorrt.runtime` asks of torch, with a GPU whose memory is the process's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from trt_models import Memory


class Tensor:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.dtype = array.dtype

    def to(self, device: str) -> Tensor:
        return Tensor(self.array.copy())

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray:
        return self.array

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)


def from_numpy(array: np.ndarray) -> Tensor:
    return Tensor(array)


def empty(shape: tuple[int, ...], dtype: np.dtype, device: str) -> Tensor:
    return Tensor(np.zeros(shape, dtype))


@contextmanager
def _working_on(stream: object) -> Iterator[None]:
    yield


_MAJOR, _MINOR = (int(part) for part in Memory.gpu.capability.split("."))
_DEVICE = SimpleNamespace(name=Memory.gpu.name, major=_MAJOR, minor=_MINOR, total_memory=Memory.gpu.memory_bytes)

cuda = SimpleNamespace(
    is_available=lambda: True,
    current_device=lambda: 0,
    get_device_properties=lambda device: _DEVICE,
    Stream=lambda: SimpleNamespace(cuda_stream=Memory.stream),
    stream=_working_on,
)
