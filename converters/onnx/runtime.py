"""ONNX models run by ONNX Runtime; `session` opens them on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from cluster.artifact import Artifact
from cluster.derived import DerivedFiles
from cluster.errors import ArtifactCorrupt, InvalidRequest
from cluster.tensors import ANY, Signature, TensorSpec
from converters.onnx.failures import failure_of
from converters.onnx.providers import CPU, CUDA, TENSORRT, Profile, profile_for
from converters.onnx.session import open_session, placed_by
from converters.onnx.tensorrt import open_on_tensorrt, ranges_of
from converters.runtime import Arrays

# ONNX Runtime's spelling of tensor types -> the protocol's
DTYPE_OF = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxRuntime:
    """One `InferenceSession` behind the signature it serves."""

    def __init__(self, session: ort.InferenceSession, signature: Signature, limits: Profile | None = None) -> None:
        """`limits`: the smallest, best and largest shape of inputs, where the session can take no other."""
        self._session = session
        self._limits = limits or {}
        self._signature = signature
        self._input_names = [spec.name for spec in signature.inputs]
        self._output_names = [spec.name for spec in signature.outputs]
        self._text_inputs = [i for i, spec in enumerate(signature.inputs) if spec.dtype == "BYTES"]
        self._text_outputs = [i for i, spec in enumerate(signature.outputs) if spec.dtype == "BYTES"]

        # Sizes that a client chose can move values between the rows and another dimension.
        self._row_guard = signature.batched and any(ANY in spec.shape[1:] for spec in signature.inputs)

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def provider(self) -> str:
        """The execution provider that was chosen, such as `CPUExecutionProvider`."""
        return str(self._session.get_providers()[0])

    @property
    def placed(self) -> dict[str, int]:
        """Nodes of the model by the provider that computes them; {} on the CPU, or where ONNX Runtime does not tell."""
        return (placed_by(self._session) or {}) if self.provider != CPU else {}

    def run(self, inputs: Arrays) -> Arrays:
        """See `converters.runtime.Runtime.run`."""
        if self._limits:
            self._check_limits(inputs)
        if self._text_inputs:
            inputs = tuple(
                _texts(array, self._input_names[i]) if i in self._text_inputs else array
                for i, array in enumerate(inputs)
            )
        try:
            outputs = self._session.run(self._output_names, dict(zip(self._input_names, inputs, strict=True)))
        except Exception as error:
            raise failure_of(error) from None
        if self._row_guard:
            self._check_rows(inputs[0].shape[0], outputs)
        for i in self._text_outputs:
            outputs[i] = _bytes(outputs[i])
        return tuple(outputs)

    def _check_limits(self, inputs: Arrays) -> None:
        for name, array in zip(self._input_names, inputs, strict=True):
            low, _, high = self._limits.get(name, (array.shape, array.shape, array.shape))
            if not all(a <= size <= b for a, size, b in zip(low, array.shape, high, strict=True)):
                raise InvalidRequest(
                    f"the model refuses these inputs: {name} of shape {list(array.shape)} is outside the ranges that "
                    "the engine was built for"
                )

    def _check_rows(self, rows: int, outputs: Sequence[np.ndarray]) -> None:
        for name, array in zip(self._output_names, outputs, strict=True):
            if array.shape[:1] != (rows,):
                raise InvalidRequest(
                    f"the model refuses these inputs: from {rows} rows of these sizes it makes {name} of shape "
                    f"{list(array.shape)}"
                )


def open_artifact(
    artifact: Artifact,
    threads: int,
    accelerator: str,
    provider: str = "auto",
    gpu_share: float = 1.0,
    derived: DerivedFiles | None = None,
) -> OnnxRuntime:
    """The runtime of an `onnx` artifact. Arguments and errors: `converters.runtime.open_runtime`."""
    if provider == "tensorrt" and accelerator != "cpu":
        session = open_on_tensorrt(artifact, threads, accelerator, gpu_share, derived)
    else:
        session = open_session(artifact.model_path, threads, accelerator, provider)
    signature = artifact.manifest.signature
    for side, specs, found in (
        ("inputs", signature.inputs, session.get_inputs()),
        ("outputs", signature.outputs, session.get_outputs()),
    ):
        stated = [(spec.name, spec.dtype) for spec in specs]
        actual = [(node.name, DTYPE_OF.get(node.type, node.type)) for node in found]
        if stated != actual:
            raise ArtifactCorrupt(f"manifest.signature.{side}: it says {stated}, the model has {actual}")
    on_tensorrt = session.get_providers()[0] == TENSORRT
    return OnnxRuntime(session, signature, profile_for(signature, ranges_of(artifact)) if on_tensorrt else None)


def describe_model(model: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Input and output specs of an ONNX file. Raises: as `open_session` and `specs_of`."""
    session = open_session(model)
    return specs_of(session.get_inputs()), specs_of(session.get_outputs())


def can_use_gpu() -> bool:
    """Whether this ONNX Runtime was built for CUDA."""
    return CUDA in ort.get_available_providers()


def specs_of(nodes: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """Specs of a session's inputs or outputs. Raises: InvalidRequest for types the protocol does not have."""
    specs = []
    for node in nodes:
        dtype = DTYPE_OF.get(node.type)
        if dtype is None:
            raise InvalidRequest(f"{node.name}: expected a tensor of {', '.join(DTYPE_OF)}, got {node.type}")
        shape = tuple(d if isinstance(d, int) and d >= 0 else ANY for d in node.shape)
        specs.append(TensorSpec(node.name, dtype, shape))
    return tuple(specs)


def _texts(array: np.ndarray, name: str) -> np.ndarray:
    texts = np.empty(array.size, dtype=object)
    texts[:] = [_text(item, name) for item in array.ravel().tolist()]
    return texts.reshape(array.shape)


def _text(item: Any, name: str) -> str:
    if isinstance(item, str):
        return item
    try:
        return bytes(item).decode()
    except (UnicodeDecodeError, TypeError):
        # ONNX strings are UTF-8: https://onnx.ai/onnx/repo-docs/IR.html, "Tensor Element Types"
        raise InvalidRequest(f"{name}: expected UTF-8 text, got {type(item).__name__} that is not") from None


def _bytes(array: np.ndarray) -> np.ndarray:
    found = np.empty(array.size, dtype=object)
    found[:] = [item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()]
    return found.reshape(array.shape)
