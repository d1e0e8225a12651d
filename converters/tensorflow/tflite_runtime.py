"""TFLite models, run by LiteRT on the CPU.

LiteRT plans memory for the sizes it is told; they are told again only when they change.
"""

from __future__ import annotations

from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from cluster.artifact import Artifact
from cluster.errors import EngineFailed, InvalidRequest
from cluster.tensors import ANY, DTYPES, Signature, TensorSpec
from converters.interface import check_inputs, check_manifest, check_rows, in_order, may_lose_rows
from converters.onnx.failures import brief
from converters.runtime import Arrays, Specs

SERVING = "serving_default"

_DTYPE_OF = {np.dtype(text): name for name, (text, size) in DTYPES.items() if size}


class TfliteRuntime:
    """One interpreter behind the signature it serves. `inputs` and `outputs` are tensor indices in its order."""

    def __init__(self, interpreter: Any, signature: Signature, inputs: list[int], outputs: list[int]) -> None:
        self._interpreter = interpreter
        self._signature = signature
        self._inputs, self._outputs = inputs, outputs
        self._row_guard = may_lose_rows(signature)
        self._planned: tuple[tuple[int, ...], ...] | None = None  # sizes that memory is planned for

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Arrays) -> Arrays:
        """See `converters.runtime.Runtime.run`."""
        check_inputs(self._signature, inputs)
        shapes = tuple(array.shape for array in inputs)
        try:
            if shapes != self._planned:
                self._plan(shapes)
            for index, array in zip(self._inputs, inputs, strict=True):
                self._interpreter.set_tensor(index, array)
            self._interpreter.invoke()
            outputs = tuple(self._interpreter.get_tensor(index) for index in self._outputs)
        except (ValueError, RuntimeError) as error:
            # It has answered its sample, so it is these sizes or values that it cannot take.
            self._planned = None
            raise InvalidRequest(f"the model refuses these inputs: {brief(error)}") from None
        except Exception as error:
            self._planned = None
            raise EngineFailed(f"LiteRT: {brief(error)}") from None
        if self._row_guard:
            check_rows(self._signature.outputs, inputs[0].shape[0], outputs)
        return outputs

    def _plan(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._planned = None
        for index, shape in zip(self._inputs, shapes, strict=True):
            self._interpreter.resize_tensor_input(index, list(shape))
        self._interpreter.allocate_tensors()
        self._planned = shapes


def open_artifact(artifact: Artifact, threads: int, accelerator: str) -> TfliteRuntime:
    """The runtime of a `tflite` artifact. Raises as `converters.runtime.open_runtime`."""
    if accelerator == "gpu":
        raise EngineFailed("accelerator: expected gpu, but LiteRT computes on the CPU here")
    interpreter = _interpreter(artifact.model_path, threads)
    inputs, outputs = _tensors(interpreter)
    signature = check_manifest(artifact, _specs(inputs), _specs(outputs))
    return TfliteRuntime(
        interpreter,
        signature,
        [inputs[spec.name]["index"] for spec in signature.inputs],
        [outputs[spec.name]["index"] for spec in signature.outputs],
    )


def describe_model(model: Path) -> tuple[Specs, Specs]:
    """Input and output specs of a TFLite file. Raises: EngineFailed, InvalidRequest."""
    inputs, outputs = _tensors(_interpreter(model, 1))
    return in_order(model, _specs(inputs), _specs(outputs))


def _interpreter(model: Path, threads: int) -> Any:
    try:
        interpreter = Interpreter(model_path=str(model), num_threads=threads)
        foreign = custom_operations(model)
    except Exception as error:
        raise EngineFailed(f"{model.name}: LiteRT cannot load it: {brief(error)}") from None
    if foreign:
        raise EngineFailed(f"{model.name}: it holds {', '.join(foreign)}, which are not TFLite's own operators")
    return interpreter


def custom_operations(model: Path) -> tuple[str, ...]:
    """Operators of a TFLite file that are not TFLite's own: TensorFlow's (`Flex...`), or anybody's."""
    with model.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        root = schema.Model.GetRootAs(content, 0)
        codes = [root.OperatorCodes(i) for i in range(root.OperatorCodesLength())]
        names = {
            (code.CustomCode() or b"?").decode(errors="replace")
            for code in codes
            if schema.BuiltinOperator.CUSTOM in (code.BuiltinCode(), code.DeprecatedBuiltinCode())
        }
        del root, codes  # they hold views of the file
    return tuple(sorted(names))


def _tensors(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Details of inputs and outputs by name: the signature's names, or the tensors' own in a file without one."""
    signatures = interpreter.get_signature_list()
    if signatures:
        key = SERVING if SERVING in signatures else next(iter(signatures))
        runner = interpreter.get_signature_runner(key)
        return runner.get_input_details(), runner.get_output_details()
    return tuple(  # type: ignore[return-value]  # two, as written
        {details["name"]: details for details in found}
        for found in (interpreter.get_input_details(), interpreter.get_output_details())
    )


def _specs(tensors: dict[str, Any]) -> Specs:
    return tuple(TensorSpec(name, _dtype_of(name, details), _shape_of(details)) for name, details in tensors.items())


def _dtype_of(name: str, details: Any) -> str:
    found = _DTYPE_OF.get(np.dtype(details["dtype"]))
    if found is None:
        raise InvalidRequest(f"{name}: expected a tensor of numbers, got {np.dtype(details['dtype'])}")
    return found


def _shape_of(details: Any) -> tuple[int, ...]:
    signature = details.get("shape_signature")
    sizes = signature if signature is not None and len(signature) else details["shape"]
    return tuple(int(size) if size >= 0 else ANY for size in sizes)
