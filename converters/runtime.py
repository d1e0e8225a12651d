"""Runtimes: what executes an artifact, both while a conversion is proved and while it serves.

A runtime is chosen by the manifest's `format`. The table holds names, so that serving an ONNX artifact imports neither
torch nor any other framework.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol

import numpy as np

from cluster.artifact import Artifact
from cluster.errors import InvalidRequest
from cluster.tensors import Signature

Arrays = tuple[np.ndarray, ...]

RUNTIMES = {
    "onnx": "converters.onnx_runtime:open_artifact",
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


def open_runtime(artifact: Artifact, threads: int = 1, accelerator: str = "cpu") -> Runtime:
    """The artifact's model, loaded and ready to run.

    Args:
        artifact: Read, and verified by the caller where that matters.
        threads: Threads that one call computes with.
        accelerator: "cpu", "gpu" (anything less than a GPU is an error) or "auto" (a GPU if there is one).

    Raises:
        InvalidRequest: No runtime for this format, or arguments that make no sense.
        ArtifactCorrupt: The model is not what the manifest says.
        EngineFailed: The model cannot be loaded, or not on this accelerator.
    """
    if accelerator not in ACCELERATORS:
        raise InvalidRequest(f"accelerator: expected one of {', '.join(ACCELERATORS)}, got {accelerator!r}")
    if threads < 1:
        raise InvalidRequest(f"threads: expected at least 1, got {threads}")
    entry = RUNTIMES.get(artifact.manifest.format)
    if entry is None:
        raise InvalidRequest(f"format: expected one of {', '.join(RUNTIMES)}, got {artifact.manifest.format!r}")
    module, name = entry.split(":")
    opener: Callable[[Artifact, int, str], Runtime] = getattr(import_module(module), name)
    return opener(artifact, threads, accelerator)
