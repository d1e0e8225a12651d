"""Artifacts of TensorRT, and a stand-in for TensorRT where there is no GPU: its engines are ONNX files, run on the CPU.

With a GPU and TensorRT or TensorRT-RTX the same artifacts hold engines that are really built and run.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from cluster.artifact import PARITY, SAMPLE, Artifact, hash_files, write_manifest
from cluster.tensors import ANY
from converters.cuda_device import CudaDevice, first_device
from converters.onnx.runtime import open_artifact as open_onnx
from converters.proof.parity import TOLERANCES
from converters.proof.sample_answers import write_answers
from converters.ranges import AxisRange
from converters.runtime import Arrays
from converters.sealing import write_json
from converters.tensorrt import on_load as tensorrt_on_load
from converters.tensorrt import runtime as tensorrt_runtime
from converters.tensorrt.engine import build, profile_of
from converters.tensorrt.on_load import ENGINE_FILE
from converters.tensorrt.recipe import EXTRA, Recipe
from onnx_models import fixed_artifact, mlp_artifact, two_input_artifact

RANGES = (AxisRange("b", 1, 1, 16),)
DTYPE_OF = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}
MODE = types.SimpleNamespace

Maker = Callable[[Path], Artifact]


@cache
def family() -> str:
    """The format whose engines can be run here; "" if none can."""
    found = [name for name in ("tensorrt", "tensorrt_rtx") if first_device() is not None and find_spec(name)]
    return found[0].replace("_", "-") if found else ""


def built(make: Maker) -> Maker:
    """`make`'s artifact with an engine in place of its ONNX file."""

    def made(path: Path) -> Artifact:
        artifact = make(path)
        engine = path / ENGINE_FILE
        if family():
            module = tensorrt_runtime.module_of(family())
            request = {"module": module, "model": str(artifact.model_path), "engine": str(engine)}
            build({**request, "profile": recipe_of(artifact).profile, "timing_cache": None})
        else:
            shutil.copy(artifact.model_path, engine)
        artifact.model_path.unlink()
        return resealed(artifact, ENGINE_FILE, {})

    made.__name__ = f"tensorrt_{make.__name__}"
    return made


def left(make: Maker) -> Maker:
    """`make`'s artifact as one whose engine is built on first load, with the source's answers to the sample."""

    def made(path: Path) -> Artifact:
        artifact = make(path)
        with np.load(path / SAMPLE) as sample:
            inputs: Arrays = tuple(sample[spec.name] for spec in artifact.manifest.signature.inputs)
        write_answers(path, artifact.manifest.signature.outputs, open_onnx(artifact, 1, "cpu").run(inputs))
        write_json(path / PARITY, {"tolerance": asdict(TOLERANCES["fp32"])})
        return resealed(artifact, artifact.model_path.name, {EXTRA: recipe_of(artifact).to_json()})

    made.__name__ = f"tensorrt_on_load_{make.__name__}"
    return made


def recipe_of(artifact: Artifact) -> Recipe:
    """For as many rows as the signature says, and `RANGES`."""
    signature = artifact.manifest.signature
    return Recipe("fp32", signature.max_rows, dict(profile_of(signature.inputs, signature.max_rows, RANGES)))


def resealed(artifact: Artifact, model: str, extra: dict[str, Any]) -> Artifact:
    """The artifact with another model file and `extra`."""
    files = hash_files(artifact.path)
    changed = replace(artifact.manifest, format=family() or "tensorrt", model_file=model, files=files, extra=extra)
    return write_manifest(artifact.path, changed)


MAKERS = [
    *(built(make) for make in (mlp_artifact, two_input_artifact, fixed_artifact)),
    left(mlp_artifact),
]


def stand_in(patch: Any) -> None:
    """Let `converters.tensorrt.runtime` find a TensorRT and a device, unless there are real ones."""
    if family():
        return
    module = types.ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    vars(module).update(__version__="11.4.0", Logger=Logger, Runtime=Runtime)
    patch.setitem(sys.modules, "tensorrt", module)
    patch.setattr(tensorrt_runtime, "TorchDevice", Memory)
    patch.setattr(
        tensorrt_on_load, "build_engine", lambda artifact, recipe, key, file: shutil.copy(artifact.model_path, file)
    )


class Memory:
    """A device whose memory is this process's own."""

    stream = 7
    gpu = CudaDevice("stand-in", "9.0", 16 << 30)

    def put(self, array: np.ndarray) -> tuple[np.ndarray, int]:
        kept = np.array(array, order="C")
        return kept, kept.ctypes.data

    def room(self, shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, int]:
        return self.put(np.zeros(shape, dtype))

    def get(self, kept: np.ndarray) -> np.ndarray:
        return kept


class Logger:
    ERROR = 1

    def __init__(self, severity: int) -> None:
        self.severity = severity


class Runtime:
    """What TensorRT's runtime has, for engines that are ONNX files."""

    def __init__(self, log: Logger) -> None:
        self.log = log

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        try:
            return Engine(ort.InferenceSession(content, providers=["CPUExecutionProvider"]))
        except Exception:
            return None


class Engine:
    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session
        self.nodes = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
        self.inputs = [node.name for node in session.get_inputs()]
        self.num_io_tensors = len(self.nodes)

    def get_tensor_name(self, i: int) -> str:
        return list(self.nodes)[i]

    def get_tensor_mode(self, name: str) -> Any:
        return MODE(name="INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return MODE(name=DTYPE_OF[self.nodes[name].type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else ANY for size in self.nodes[name].shape)

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    """Reads its inputs from addresses and writes its outputs to addresses, as TensorRT does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        stated = self.engine.get_tensor_shape(name)
        self.shapes[name] = shape
        return len(shape) == len(stated) and all(s in (ANY, size) for s, size in zip(stated, shape, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._answers()[name].shape)

    def execute_async_v3(self, stream: int) -> bool:
        for name, array in self._answers().items():
            ctypes.memmove(self.addresses[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)
        return stream == Memory.stream

    def _answers(self) -> dict[str, np.ndarray]:
        session = self.engine.session
        names = [node.name for node in session.get_outputs()]
        given = {name: self._read(name) for name in self.engine.inputs}
        return dict(zip(names, session.run(names, given), strict=True))

    def _read(self, name: str) -> np.ndarray:
        kind = np.dtype("f4" if self.engine.get_tensor_dtype(name).name == "FLOAT" else "i8")
        size = int(np.prod(self.shapes[name], dtype=np.int64)) * kind.itemsize
        return np.frombuffer(ctypes.string_at(self.addresses[name], size), kind).reshape(self.shapes[name])
