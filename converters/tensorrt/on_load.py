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

# The compute capability from which GPUs compute matrix products in a precision, by the module that builds for them.
# TensorRT: https://docs.nvidia.com/deeplearning/tensorrt, support matrix. TensorRT-RTX 1.7 refuses to build for less.
LEAST_CAPABILITY: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "tensorrt": {"bf16": (8, 0), "fp8": (8, 9)},
    "tensorrt_rtx": {"fp32": (8, 0), "fp16": (7, 5), "bf16": (8, 0), "int8": (8, 0), "fp8": (8, 9)},
}

# What TensorRT-RTX builds for unless it is told otherwise runs from here on.
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
PORTABLE_FROM = (8, 0)

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


def require(module: str, precision: str, gpu: CudaDevice) -> None:
    """Raises: EngineFailed if `module` builds no engines in `precision` for the GPU."""
    least = LEAST_CAPABILITY[module].get(precision, (0, 0))
    if _numbers(gpu.capability) < least:
        needed = ".".join(map(str, least))
        raise EngineFailed(
            f"accelerator: {precision} needs a GPU of compute capability {needed} or newer with {module}, {gpu.name} "
            f"has {gpu.capability}"
        )


def target_of(module: str, capability: str) -> str:
    """The compute capability that a builder must be told to build for; "" where it finds a suitable one itself."""
    return capability if module == "tensorrt_rtx" and _numbers(capability) < PORTABLE_FROM else ""


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


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
        "capability": target_of(key["runtime"], key["capability"]),
    }
    try:
        run_task(request, "building the engine")
    except ConversionFailed as error:
        raise EngineFailed(error.message) from None
