"""Runtimes: what executes an artifact, both while a conversion is proved and while it serves.

A runtime is chosen by the manifest's `format`. The table holds names, so that serving an ONNX artifact imports neither
torch nor any other framework.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster.artifact import Artifact
from cluster.derived import DerivedFiles
from cluster.errors import EngineFailed, InvalidRequest
from cluster.tensors import Signature, TensorSpec
from converters.installed import refuse_conflicts

Arrays = tuple[np.ndarray, ...]

Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class RuntimeEntry:
    """How artifacts of one format are executed. Names are `module:function`.

    Attributes:
        open: `(artifact: Artifact, threads: int, accelerator: str) -> Runtime`, raising as `open_runtime`.
        describe: `(model: Path) -> (input specs, output specs)` of a model file, as the runtime itself sees it.
        needs: Modules it imports.
        gpu: `() -> bool`: whether it can compute on a GPU as it is installed here; "" if it never does.
        options: Which of `open_runtime`'s further arguments `open` takes too, by their names.
    """

    open: str
    describe: str
    needs: tuple[str, ...]
    gpu: str = ""
    options: tuple[str, ...] = ()


# By the `format` of a manifest.
RUNTIMES = {
    "onnx": RuntimeEntry(
        "converters.onnx.runtime:open_artifact",
        "converters.onnx.runtime:describe_model",
        ("onnxruntime",),
        gpu="converters.onnx.runtime:can_use_gpu",
        options=("provider", "gpu_share", "derived"),
    ),
    "tensorflow": RuntimeEntry(
        "converters.tensorflow.runtime:open_artifact",
        "converters.tensorflow.runtime:describe_model",
        ("tensorflow",),
        gpu="converters.tensorflow.runtime:can_use_gpu",
    ),
    "pytorch": RuntimeEntry(
        "converters.torch.pt2_runtime:open_artifact",
        "converters.torch.pt2_runtime:describe_model",
        ("torch",),
        gpu="converters.torch.runtime:can_use_gpu",
        options=("derived",),
    ),
    "torchscript": RuntimeEntry(
        "converters.torch.script_runtime:open_artifact",
        "converters.torch.script_runtime:describe_model",
        ("torch",),
        gpu="converters.torch.runtime:can_use_gpu",
    ),
    "tflite": RuntimeEntry(
        "converters.tensorflow.tflite_runtime:open_artifact",
        "converters.tensorflow.tflite_runtime:describe_model",
        ("ai_edge_litert",),
    ),
    "tensorrt": RuntimeEntry(
        "converters.tensorrt.runtime:open_artifact",
        "converters.tensorrt.runtime:describe_tensorrt",
        ("tensorrt", "torch"),
        gpu="converters.tensorrt.runtime:can_use_gpu",
        options=("gpu_share", "derived"),
    ),
    "tensorrt-rtx": RuntimeEntry(
        "converters.tensorrt.runtime:open_artifact",
        "converters.tensorrt.runtime:describe_rtx",
        ("tensorrt_rtx", "torch"),
        gpu="converters.tensorrt.runtime:can_use_gpu",
        options=("gpu_share", "derived"),
    ),
}

ACCELERATORS = ("auto", "cpu", "gpu")


class Runtime(Protocol):
    """A loaded model. One thread at a time may call `run`."""

    @property
    def signature(self) -> Signature:
        """The artifact's signature; `run` takes and gives tensors in its order."""

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs of one call.

        Args:
            inputs: One array per signature input, with the spec's dtype and shape. BYTES are object arrays of bytes or
                str (or numpy's own string dtypes).

        Returns:
            One C-contiguous array per signature output; BYTES are object arrays of bytes.

        Raises:
            InvalidRequest: The model cannot take the inputs' values or sizes.
            EngineFailed: Anything else went wrong while computing: memory, the device, a missing kernel.
        """


def open_runtime(
    artifact: Artifact,
    threads: int = 1,
    accelerator: str = "cpu",
    *,
    provider: str = "auto",
    gpu_share: float = 1.0,
    derived: DerivedFiles | None = None,
) -> Runtime:
    """The artifact's model, loaded and ready to run.

    Args:
        artifact: Read, and verified by the caller where that matters.
        threads: Threads that one call computes with.
        accelerator: "cpu", "gpu" (anything less than a GPU is an error) or "auto" (a GPU if there is one).
        provider: Which of the runtime's ways to compute on a GPU, where it has several: "cuda" or "tensorrt" for ONNX
            artifacts; "auto" is the runtime's own choice.
        gpu_share: The part of a GPU's memory that this process may count on.
        derived: Where engines are kept that are built here; None: they are built again by every process.

    Raises:
        InvalidRequest: No runtime for this format, or arguments that make no sense.
        ArtifactCorrupt: The model is not what the manifest says.
        EngineFailed: The model cannot be loaded, or not on this accelerator.
        OperatorError: Installed packages exclude each other.
    """
    if accelerator not in ACCELERATORS:
        raise InvalidRequest(f"accelerator: expected one of {', '.join(ACCELERATORS)}, got {accelerator!r}")
    if threads < 1:
        raise InvalidRequest(f"threads: expected at least 1, got {threads}")
    refuse_conflicts()
    entry = entry_of(artifact.manifest.format)
    if provider != "auto" and "provider" not in entry.options:
        raise InvalidRequest(f"provider: {artifact.manifest.format} artifacts leave no choice, got {provider!r}")
    further = {"provider": provider, "gpu_share": gpu_share, "derived": derived}
    opener: Callable[..., Runtime] = _load(entry.open)
    return opener(artifact, threads, accelerator, **{name: further[name] for name in entry.options})


def describe_model(format_name: str, model: Path) -> tuple[Specs, Specs]:
    """Input and output specs of a model file, as the runtime of `format_name` sees them.

    Raises: as `open_runtime`; also InvalidRequest for types that the protocol does not have.
    """
    describe: Callable[[Path], tuple[Specs, Specs]] = _load(entry_of(format_name).describe)
    return describe(model)


def can_use_gpu(format_name: str) -> bool:
    """Whether the runtime of `format_name`, as it is installed here, can compute on a GPU; False if it is not."""
    entry = RUNTIMES.get(format_name)
    if entry is None or not entry.gpu or any(find_spec(name) is None for name in entry.needs):
        return False
    asked: Callable[[], bool] = _load(entry.gpu)
    return asked()


def entry_of(format_name: str) -> RuntimeEntry:
    """The registry's entry. Raises: InvalidRequest for an unknown format, EngineFailed if its runtime is missing."""
    entry = RUNTIMES.get(format_name)
    if entry is None:
        raise InvalidRequest(f"format: expected one of {', '.join(RUNTIMES)}, got {format_name!r}")
    missing = [name for name in entry.needs if find_spec(name) is None]
    if missing:
        from converters.table import EXTRA_OF

        extras = sorted({EXTRA_OF[name] for name in missing if name in EXTRA_OF})
        hint = f" (pip install 'prism-serving[{','.join(extras)}]')" if extras else ""
        raise EngineFailed(f"format {format_name}: its runtime needs {', '.join(missing)}, not installed{hint}")
    return entry


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
