"""Engines built by the replica that needs them, for the GPU it has, and kept for the next replica on such a GPU.

A kept engine is known by the artifact's digest, the GPU and the version of TensorRT. It is used if its files have their
SHA-256, TensorRT takes it, and it answers the artifact's sample as the source does; otherwise it is built again. A new
engine that gives wrong answers is kept nowhere.
"""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.artifact import Artifact
from cluster.derived import DerivedFiles
from cluster.errors import ConversionFailed, EngineFailed
from converters.cuda_device import CudaDevice
from converters.isolated import run_task
from converters.runtime import Runtime
from converters.tensorrt.recipe import Recipe

log = logging.getLogger(__name__)

ENGINE_FILE = "model.engine"

# The compute capability from which GPUs have a precision; TensorRT-RTX 1.7 refuses to build for less.
LEAST_CAPABILITY = {"bf16": (8, 0), "fp8": (8, 9)}

Open = Callable[[Path], Runtime]
"""Loads an engine file and checks its answers. Raises: EngineFailed if it is of no use here."""


def key_of(module: str, version: str, gpu: CudaDevice, workspace_bytes: int = 0) -> dict[str, str]:
    """What kept engines fit, and the most memory that they were allowed to use while they compute (0: no bound).

    A TensorRT engine fits one model of GPU: https://docs.nvidia.com/deeplearning/tensorrt/latest/, "Engine
    compatibility". TensorRT-RTX finishes its engines on the device, so that the architecture is enough.
    """
    device = {"gpu": gpu.name} if module == "tensorrt" else {}
    machine = f"{platform.system()} {platform.machine()}"
    bound = {"workspace_bytes": str(workspace_bytes)} if workspace_bytes else {}
    return {"runtime": module, "version": version, "capability": gpu.capability, "platform": machine, **device, **bound}


def require(precision: str, gpu: CudaDevice) -> None:
    """Raises: EngineFailed if the GPU does not compute in `precision`."""
    least = LEAST_CAPABILITY.get(precision, (0, 0))
    if tuple(int(part) for part in gpu.capability.split(".")) < least:
        needed = ".".join(map(str, least))
        raise EngineFailed(
            f"accelerator: {precision} needs a GPU of compute capability {needed} or newer, {gpu.name} has "
            f"{gpu.capability}"
        )


def opened_on_load(
    artifact: Artifact,
    recipe: Recipe,
    key: Mapping[str, str],
    derived: DerivedFiles | None,
    open_engine: Open,
    build: Callable[[Artifact, Recipe, Mapping[str, str], Path], None] | None = None,
) -> Runtime:
    """The artifact's engine for this GPU as `open_engine` opens it: a kept one, or one that is built now.

    Args:
        derived: Where engines are kept; None builds one for this process only.
        build: `build_engine`, unless a test brings its own.

    Raises: EngineFailed if it cannot be built, or `open_engine` refuses what was built.
    """
    build = build or build_engine
    new: list[Runtime] = []

    def make(folder: Path) -> None:
        log.info("building the engine of %s for %s", artifact.digest[:16], key)
        build(artifact, recipe, key, folder / ENGINE_FILE)
        new.append(open_engine(folder / ENGINE_FILE))

    if derived is None:
        with tempfile.TemporaryDirectory(prefix="prism-") as folder:
            make(Path(folder))
        return new[0]
    with derived.obtain(artifact.digest, key, make) as found:
        if new:
            return new[0]
        try:
            return open_engine(found / ENGINE_FILE)
        except EngineFailed as error:
            log.warning("the engine kept for this GPU is of no use and is built again: %s", error.message)
    derived.discard(artifact.digest, key)
    with derived.obtain(artifact.digest, key, make) as found:
        return new[0] if new else open_engine(found / ENGINE_FILE)


def build_engine(artifact: Artifact, recipe: Recipe, key: Mapping[str, str], engine: Path) -> None:
    """Build the artifact's engine in a process of its own, which the builder may abort. Raises: EngineFailed."""
    request = {
        "task": "engine",
        "module": key["runtime"],
        "model": str(artifact.model_path.absolute()),
        "engine": str(engine),
        "profile": {name: list(shapes) for name, shapes in recipe.profile.items()},
        "timing_cache": None,
        "workspace_bytes": int(key.get("workspace_bytes", "0")),
    }
    try:
        run_task(request, "building the engine")
    except ConversionFailed as error:
        raise EngineFailed(error.message) from None
