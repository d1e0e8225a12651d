"""FP32 ONNX to INT8 for CPUs: static quantisation with explicit quantise/dequantise nodes.

Unsigned activations, signed weights per channel, ranges from the smallest and largest value seen on the calibration
data. Per-tensor weights ruin networks with depthwise convolutions, so they are not offered.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from cluster.errors import ConversionFailed, InvalidRequest
from converters.candidate import Candidate, Options, Say
from converters.isolated import describe
from converters.onnx_failures import brief
from converters.onnx_file import INLINE_BYTES, MODEL_FILE
from converters.samples import calibration_calls


class _Cases(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no type hints
    """ONNX Runtime asks for one call after the other, and for None at the end."""

    def __init__(self, calls: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._calls = iter(calls)

    def get_next(self) -> dict[str, np.ndarray] | None:
        call = next(self._calls, None)
        return dict(call) if call is not None else None


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` in INT8, to be compared with what `candidate` was compared with (or with its own answers).

    Raises: InvalidRequest without calibration data, ConversionFailed if ONNX Runtime cannot quantise the model.
    """
    if options.calibrate is None:
        raise InvalidRequest("calibrate: INT8 needs calibration data, got none")
    if candidate.precision == "int8":
        raise ConversionFailed("the source is quantised already")
    inputs, _ = describe(candidate.path)
    calls = calibration_calls(options.calibrate, inputs, batched=options.max_rows > 1)
    say(f"quantising to INT8 with {len(calls)} calibration calls")
    target = work / MODEL_FILE
    _quantise(candidate.path, work / "prepared.onnx", target, calls)
    tools = {**candidate.tools, "onnxruntime": ort.__version__}
    return replace(candidate, path=target, precision="int8", tools=tools)


def _quantise(source: Path, prepared: Path, target: Path, calls: Sequence[Mapping[str, np.ndarray]]) -> None:
    large = sum(file.stat().st_size for file in source.parent.glob(source.name + "*")) >= INLINE_BYTES
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantiser logs advice through the root logger
    try:
        quant_pre_process(
            str(source),
            str(prepared),
            skip_symbolic_shape=True,
            save_as_external_data=large,
            all_tensors_to_one_file=large,
        )
        quantize_static(
            str(prepared),
            str(target),
            _Cases(calls),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=large,
        )
    except Exception as error:
        raise ConversionFailed(f"INT8: ONNX Runtime cannot quantise this model: {brief(error)}") from None
    finally:
        root.setLevel(level)
        for file in prepared.parent.glob(prepared.name + "*"):
            file.unlink()
    if not any(node.op_type == "DequantizeLinear" for node in onnx.load(target, load_external_data=False).graph.node):
        raise ConversionFailed("INT8: nothing in this model can be quantised")
