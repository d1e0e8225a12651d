"""ONNX artifacts on ONNX Runtime's TensorRT provider: engines are built where they run, and kept for the next replica.

An engine takes seconds to minutes to build. It is kept by the artifact's digest, the kind of GPU, the versions of
TensorRT and ONNX Runtime, and what the builder was told; a kept one that cannot be loaded is built again.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort

from cluster.artifact import Artifact
from cluster.derived import DerivedFiles
from cluster.errors import ArtifactCorrupt, EngineFailed, InvalidRequest
from converters.cuda_device import CudaDevice, first_device
from converters.installed import TENSORRT_PROVIDER, refuse_conflicts
from converters.onnx.providers import TENSORRT, TensorRtOptions, profile_for
from converters.onnx.session import Create, open_session, tensorrt_version
from converters.ranges import AxisRange, parse_ranges

log = logging.getLogger(__name__)

Start = Callable[[TensorRtOptions], ort.InferenceSession]


def open_on_tensorrt(
    artifact: Artifact,
    threads: int,
    accelerator: str,
    gpu_share: float,
    derived: DerivedFiles | None,
    create: Create | None = None,
) -> ort.InferenceSession:
    """A session whose model TensorRT computes, as far as it can; CUDA takes the other nodes.

    Args:
        accelerator: "gpu": an error if TensorRT computes nothing; "auto": the best provider there is.
        gpu_share: The part of the GPU's memory that a layer may use while it computes.
        derived: Where engines are kept; None: they last as long as the session.

    Raises: EngineFailed; ArtifactCorrupt if the ranges in the manifest make no sense; OperatorError if the TensorRT
        that is installed is not the one that ONNX Runtime is built for.
    """

    def start(options: TensorRtOptions) -> ort.InferenceSession:
        return open_session(artifact.model_path, threads, "gpu", "tensorrt", {TENSORRT: options.to_provider()}, create)

    refuse_conflicts(exclusions=TENSORRT_PROVIDER)
    try:
        device = _device()
        workspace = int(gpu_share * device.memory_bytes) if gpu_share < 1 else 0
        profile = profile_for(artifact.manifest.signature, ranges_of(artifact))
        options = TensorRtOptions(profile, workspace_bytes=workspace)
        if derived is None:
            return start(options)
        return _with_kept_engines(artifact, device, options, derived, start)
    except EngineFailed as error:
        if accelerator != "auto":
            raise
        log.warning("%s: a lesser provider will do: %s", artifact.model_path.name, error.message)
        return open_session(artifact.model_path, threads, "auto", "cuda", create=create)


def ranges_of(artifact: Artifact) -> tuple[AxisRange, ...]:
    """The sizes of free axes that the artifact was proved for. Raises: ArtifactCorrupt."""
    stated = artifact.manifest.extra.get("ranges", {})
    try:
        return parse_ranges([f"{axis}={low}..{high}" for axis, (low, high) in stated.items()])
    except (InvalidRequest, AttributeError, TypeError, ValueError):
        raise ArtifactCorrupt(f"manifest.extra.ranges: expected input:axis and [min, max], got {stated}") from None


def key_of(device: CudaDevice, options: TensorRtOptions, tensorrt: str) -> dict[str, str]:
    """What kept engines fit."""
    told = replace(options, cache=None, building=False).to_provider()
    return {
        "runtime": "onnxruntime-tensorrt",
        "onnxruntime": str(ort.__version__),
        "tensorrt": tensorrt,
        "gpu": device.name,
        "capability": device.capability,
        "platform": f"{platform.system()} {platform.machine()}",
        **told,
    }


def _with_kept_engines(
    artifact: Artifact, device: CudaDevice, options: TensorRtOptions, derived: DerivedFiles, start: Start
) -> ort.InferenceSession:
    key = key_of(device, options, tensorrt_version())
    new: list[ort.InferenceSession] = []

    def make(folder: Path) -> None:
        log.info("building engines of %s for %s", artifact.digest[:16], device.name)
        session = start(replace(options, cache=folder, building=True))
        if not any(folder.glob("*.engine")):
            raise EngineFailed(
                "provider: TensorRT built nothing while the model was loaded: it would build for each new size of an "
                "input between its own nodes and others'; deploy it with --provider cuda"
            )
        new.append(session)

    with derived.obtain(artifact.digest, key, make) as folder:
        if new:
            return new[0]
        try:
            return start(replace(options, cache=folder))
        except EngineFailed as error:
            log.warning("the engines kept for this GPU are of no use and are built again: %s", error.message)
    derived.discard(artifact.digest, key)
    with derived.obtain(artifact.digest, key, make) as folder:
        return new[0] if new else start(replace(options, cache=folder))


def _device() -> CudaDevice:
    device = first_device()
    if device is None:
        raise EngineFailed("provider: expected tensorrt, but NVIDIA's driver finds no GPU here")
    return device
