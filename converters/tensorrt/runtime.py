"""TensorRT and TensorRT-RTX engines run on the GPU they were built for, or are built for the GPU at hand.

Both packages have the same interface, and torch's CUDA side holds the memory: inputs are copied to the device, outputs
back, all on one stream. Shapes outside the ranges that the engine was built for are the caller's mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster.artifact import Artifact
from cluster.derived import DerivedFiles
from cluster.errors import ArtifactCorrupt, EngineFailed, InvalidRequest
from cluster.tensors import Signature, TensorSpec
from converters.cuda_device import CudaDevice
from converters.onnx.failures import brief
from converters.proof.sample_answers import check_answers
from converters.runtime import Arrays, Runtime, Specs
from converters.tensorrt.on_load import key_of, opened_on_load, require
from converters.tensorrt.recipe import Recipe

# TensorRT's names of data types -> the protocol's
DTYPE_OF = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "UINT8": "UINT8",
    "BOOL": "BOOL",
}


class Device(Protocol):
    """Memory of a GPU and its stream of work."""

    @property
    def stream(self) -> int:
        """The stream's handle."""

    def put(self, array: np.ndarray) -> tuple[Any, int]:
        """The array on the device: what keeps it there, and its address."""

    def room(self, shape: tuple[int, ...], dtype: str) -> tuple[Any, int]:
        """Empty memory for a tensor (`dtype` as numpy spells it): what keeps it, and its address."""

    def get(self, kept: Any) -> np.ndarray:
        """What lies in it once all work so far is done."""


class TorchDevice:
    """The current CUDA device, by torch."""

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise EngineFailed("accelerator: an engine of TensorRT needs a GPU, and torch finds none")
        self._torch = torch
        self._stream = torch.cuda.Stream()

    @property
    def gpu(self) -> CudaDevice:
        """What this device is."""
        found = self._torch.cuda.get_device_properties(self._torch.cuda.current_device())
        return CudaDevice(str(found.name), f"{found.major}.{found.minor}", int(found.total_memory))

    @property
    def stream(self) -> int:
        return int(self._stream.cuda_stream)

    def put(self, array: np.ndarray) -> tuple[Any, int]:
        with self._working():
            kept = self._torch.from_numpy(np.ascontiguousarray(array)).to("cuda")
        return kept, int(kept.data_ptr())

    def room(self, shape: tuple[int, ...], dtype: str) -> tuple[Any, int]:
        kind = self._torch.from_numpy(np.empty(0, dtype)).dtype
        with self._working():
            kept = self._torch.empty(shape, dtype=kind, device="cuda")
        return kept, int(kept.data_ptr())

    def get(self, kept: Any) -> np.ndarray:
        with self._working():
            found: np.ndarray = kept.cpu().numpy()
        return found

    @contextmanager
    def _working(self) -> Iterator[None]:
        """On this device's stream. Raises: EngineFailed, say for want of memory."""
        try:
            with self._torch.cuda.stream(self._stream):
                yield
        except RuntimeError as error:  # what torch raises of a device is one of these
            raise EngineFailed(f"TensorRT: {brief(error)}") from None


class TensorRtRuntime:
    """One execution context behind the signature it serves."""

    def __init__(self, context: Any, device: Device, signature: Signature) -> None:
        self._context = context
        self._device = device
        self._signature = signature

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Arrays) -> Arrays:
        """See `converters.runtime.Runtime.run`."""
        kept = []  # until the work is done
        for spec, array in zip(self._signature.inputs, inputs, strict=True):
            if not self._context.set_input_shape(spec.name, tuple(array.shape)):
                raise InvalidRequest(
                    f"the model refuses these inputs: {spec.name} of shape {list(array.shape)} is outside the ranges "
                    "that the engine was built for"
                )
            memory, address = self._device.put(np.asarray(array, dtype=spec.numpy))
            kept.append(memory)
            self._point(spec.name, address)
        found = []
        for spec in self._signature.outputs:
            shape = tuple(int(size) for size in self._context.get_tensor_shape(spec.name))
            if any(size < 0 for size in shape):
                raise EngineFailed(f"TensorRT: the shape of {spec.name} depends on values, which is not supported")
            memory, address = self._device.room(shape, spec.numpy)
            found.append(memory)
            self._point(spec.name, address)
        if not self._context.execute_async_v3(self._device.stream):
            raise EngineFailed("TensorRT: the engine could not be executed")
        return tuple(self._device.get(memory) for memory in found)

    def _point(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise EngineFailed(f"TensorRT: it refuses the memory for {name}, so that nothing was computed")


def open_artifact(
    artifact: Artifact,
    threads: int,
    accelerator: str,
    gpu_share: float = 1.0,
    derived: DerivedFiles | None = None,
) -> Runtime:
    """The runtime of a `tensorrt` or `tensorrt-rtx` artifact. Raises as `converters.runtime.open_runtime`.

    An artifact that leaves the engine to be built here gets one, which may use `gpu_share` of the GPU's memory while it
    computes; it is kept in `derived`, or not at all.
    """
    if accelerator == "cpu":
        raise EngineFailed("accelerator: an engine of TensorRT runs on a GPU, got cpu")
    device = TorchDevice()
    module = module_of(artifact.manifest.format)

    def open_engine(file: Path) -> Runtime:
        runtime = opened(artifact, load(module, file), device)
        check_answers(runtime, artifact)
        return runtime

    recipe = Recipe.of(artifact.manifest)
    if recipe is None:
        return open_engine(artifact.model_path)
    require(module, recipe.precision, device.gpu)
    workspace_bytes = int(gpu_share * device.gpu.memory_bytes) if gpu_share < 1 else 0
    key = key_of(module, str(import_module(module).__version__), device.gpu, workspace_bytes)
    return opened_on_load(artifact, recipe, key, derived, open_engine)


def opened(artifact: Artifact, engine: Any, device: Device) -> TensorRtRuntime:
    """An engine behind the artifact's signature.

    Raises: ArtifactCorrupt if it has other inputs or outputs; EngineFailed if the GPU has no memory left for it.
    """
    signature = artifact.manifest.signature
    found = {spec.name: spec.dtype for side in specs_of(engine) for spec in side}
    stated = {spec.name: spec.dtype for spec in (*signature.inputs, *signature.outputs)}
    if found != stated:
        raise ArtifactCorrupt(f"manifest.signature: it says {stated}, the engine has {found}")
    context = engine.create_execution_context()
    if context is None:  # TensorRT says why to its log only
        raise EngineFailed("TensorRT: the engine cannot be prepared to run, most likely for want of GPU memory")
    return TensorRtRuntime(context, device, signature)


def can_use_gpu() -> bool:
    """Whether torch finds a GPU, without which no engine runs."""
    import torch

    return bool(torch.cuda.is_available())


def describe_tensorrt(model: Path) -> tuple[Specs, Specs]:
    """Specs of a TensorRT engine. Raises: as `load` and `specs_of`."""
    return specs_of(load("tensorrt", model))


def describe_rtx(model: Path) -> tuple[Specs, Specs]:
    """Specs of a TensorRT-RTX engine. Raises: as `load` and `specs_of`."""
    return specs_of(load("tensorrt_rtx", model))


def module_of(format_name: str) -> str:
    """The Python module of an artifact's format."""
    return format_name.replace("-", "_")


def load(module: str, path: Path) -> Any:
    """The engine. Raises: EngineFailed if it is damaged, or of another version or kind of GPU."""
    trt = import_module(module)
    log = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(log).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineFailed(
            f"{path.name}: {module} {trt.__version__} cannot load it; an engine fits the version and the kind of GPU "
            "it was built for"
        )
    return engine


def specs_of(engine: Any) -> tuple[Specs, Specs]:
    """Inputs and outputs of an engine. Raises: InvalidRequest for types the protocol does not have."""
    sides: Mapping[str, list[TensorSpec]] = {"INPUT": [], "OUTPUT": []}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        dtype = DTYPE_OF.get(engine.get_tensor_dtype(name).name)
        if dtype is None:
            raise InvalidRequest(f"{name}: expected {', '.join(DTYPE_OF)}, got {engine.get_tensor_dtype(name).name}")
        shape = tuple(int(size) for size in engine.get_tensor_shape(name))
        sides[engine.get_tensor_mode(name).name].append(TensorSpec(name, dtype, shape))
    return tuple(sides["INPUT"]), tuple(sides["OUTPUT"])
