"""What PyTorch's two served forms have in common: tensors in and out, the device, threads, and what errors mean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from cluster.errors import EngineFailed, InvalidRequest, ServingError
from cluster.tensors import DTYPES, Signature
from converters.interface import check_inputs, check_rows, may_lose_rows
from converters.onnx.failures import brief
from converters.runtime import Arrays

Call = Callable[[Sequence[torch.Tensor]], Any]
"""A model: tensors in the signature's order to whatever nest of tensors it answers with."""

# Whether compiled code is wanted, in a manifest's `extra[COMPILED]` by device (see `converters.torch.choice`).
COMPILED = "compiled"
OFF, AUTO, ON = "off", "auto", "on"

_DTYPE_OF = {np.dtype(text): name for name, (text, size) in DTYPES.items() if size}


class TorchRuntime:
    """A model on a device behind the signature it serves.

    `quick` is the same model compiled, where it is: None for sizes that it was not compiled for. What it cannot answer
    the model itself answers, or refuses with a reason.
    """

    def __init__(self, call: Call, signature: Signature, device: torch.device, quick: Call | None = None) -> None:
        self._call = call
        self._quick = quick
        self._signature = signature
        self._device = device
        self._dtypes = [np.dtype(spec.numpy) for spec in signature.outputs]
        self._row_guard = may_lose_rows(signature)

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def provider(self) -> str:
        """What it computes on: `CPU` or `CUDA`."""
        return str(self._device.type).upper()

    @property
    def compiled(self) -> bool:
        """Whether calls go to compiled code first."""
        return self._quick is not None

    def run(self, inputs: Arrays) -> Arrays:
        """See `converters.runtime.Runtime.run`."""
        check_inputs(self._signature, inputs)
        try:
            with torch.inference_mode():
                tensors = [torch.tensor(array, device=self._device) for array in inputs]
                outputs = self._answer(tensors)
        except Exception as error:
            raise failure_of(error) from None
        if [array.dtype for array in outputs] != self._dtypes:
            made = [_DTYPE_OF.get(array.dtype, str(array.dtype)) for array in outputs]
            raise EngineFailed(f"PyTorch: expected {[s.dtype for s in self._signature.outputs]}, got {made}")
        if self._row_guard:
            check_rows(self._signature.outputs, inputs[0].shape[0], outputs)
        return outputs

    def _answer(self, tensors: Sequence[torch.Tensor]) -> Arrays:
        if self._quick is not None:
            with contextlib.suppress(RuntimeError):
                found = self._quick(tensors)
                if found is not None:
                    return _arrays(found)
        return _arrays(self._call(tensors))


def _arrays(answer: Any) -> Arrays:
    leaves = (leaf for leaf in pytree.tree_leaves(answer) if leaf is not None)
    return tuple(leaf.detach().cpu().contiguous().numpy() for leaf in leaves)


def device_of(accelerator: str) -> torch.device:
    """The device to compute on. Raises: EngineFailed if a GPU is asked for and PyTorch sees none."""
    if accelerator != "cpu" and can_use_gpu():
        return torch.device("cuda", torch.cuda.current_device())
    if accelerator == "gpu":
        built = f"built for CUDA {torch.version.cuda}, sees none" if torch.version.cuda else "built for CPUs"
        raise EngineFailed(f"accelerator: expected gpu, but this PyTorch ({torch.__version__}) is {built}")
    return torch.device("cpu")


def wants_compiled(extra: Mapping[str, Any], device: torch.device) -> str:
    """`AUTO` or `ON` if a manifest's `extra` says that compiled code is kept on such a device, else `OFF`."""
    entry = extra.get(COMPILED)
    found = entry.get("gpu" if device.type == "cuda" else "cpu") if isinstance(entry, Mapping) else None
    if not isinstance(found, Mapping) or found.get("kept") is not True:
        return OFF
    return ON if found.get("asked") == ON else AUTO


def can_use_gpu() -> bool:
    """Whether this PyTorch was built for CUDA and sees a device."""
    return bool(torch.cuda.is_available())


def use_threads(threads: int) -> None:
    """Have calls compute with `threads` threads, and run branches that a model forks one after the other."""
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        with contextlib.suppress(RuntimeError):  # too late, as something has been forked already
            torch.set_num_interop_threads(1)


def dtype_name(dtype: torch.dtype) -> str | None:
    """The protocol's name of a type of torch, or None where it has none."""
    try:
        return _DTYPE_OF.get(np.dtype(str(dtype).removeprefix("torch.")))
    except TypeError:  # bfloat16, float8 and others that numpy does not have
        return None


def failure_of(error: Exception) -> ServingError:
    """What to raise for an error of a model that has answered its sample, with a message of one line."""
    lines = [line for line in str(error).split("\n") if line.strip()] or [type(error).__name__]
    # TorchScript tells where in its code it failed, and what failed in the last line.
    last = isinstance(error, torch.jit.Error) or lines[0].startswith("The following operation failed")
    reason = brief(Exception(lines[-1].removeprefix("RuntimeError: ") if last else lines[0]))
    internal = isinstance(error, MemoryError | torch.OutOfMemoryError | torch.AcceleratorError)
    if internal or any(word in reason for word in ("allocate memory", "CUDA error", "cuDNN error", "CUBLAS_STATUS")):
        return EngineFailed(f"PyTorch: {reason}")
    if isinstance(error, RuntimeError | IndexError | ValueError | AssertionError | ZeroDivisionError):
        return InvalidRequest(f"the model refuses these inputs: {reason}")
    return EngineFailed(f"PyTorch: {type(error).__name__}: {reason}")
