"""The GPU of this process, as NVIDIA's driver tells: no framework is needed to ask."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DRIVER = "libcuda.so.1"
NVML = "libnvidia-ml.so.1"  # the part of the driver that tells what is in use, without a context of its own

# CUdevice_attribute, https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html
_MAJOR, _MINOR = 75, 76


class _Memory(ctypes.Structure):
    """nvmlMemory_t, https://docs.nvidia.com/deploy/nvml-api/structnvmlMemory__t.html"""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """`capability` is CUDA's compute capability, as "9.0"."""

    name: str
    capability: str
    memory_bytes: int


def first_device(load: Callable[[str], Any] = ctypes.CDLL) -> CudaDevice | None:
    """The first GPU that this process may use; None where there is no driver, or it has no GPU."""
    try:
        driver = load(DRIVER)
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    asked: tuple[Callable[[], int], ...] = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
        lambda: driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
    )
    if any(ask() for ask in asked):  # 0 is success; what comes after a failure is not asked
        return None
    return CudaDevice(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)


def used_bytes(load: Callable[[str], Any] = ctypes.CDLL) -> int | None:
    """Memory of the first GPU of this process that is in use, by whomever; None where the driver does not tell."""
    try:
        driver, nvml = load(DRIVER), load(NVML)
    except OSError:
        return None
    device, handle = ctypes.c_int(), ctypes.c_void_p()
    address, memory = ctypes.create_string_buffer(32), _Memory()
    asked: tuple[Callable[[], int], ...] = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetPCIBusId(address, len(address), device),
        lambda: nvml.nvmlInit_v2(),
        lambda: nvml.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(handle)),
        lambda: nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)),
    )
    return None if any(ask() for ask in asked) else int(memory.used)
