"""FP32 ONNX to FP16: half the size, for devices that compute in it. Inputs and outputs keep their types."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort

from cluster.errors import ConversionFailed
from converters.candidate import Candidate, Options, Say
from converters.onnx.failures import brief
from converters.onnx.file import MODEL_FILE, read, save


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` with FP16 weights and arithmetic. Raises: ConversionFailed, also if there is nothing to halve."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if candidate.precision != "fp32":
        raise ConversionFailed(f"fp16: expected an fp32 model, got {candidate.precision}")
    say("converting to FP16")
    model = read(candidate.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of every weight too small for FP16; the comparison judges them
            model = convert_float_to_float16(model, keep_io_types=True)
    except Exception as error:
        raise ConversionFailed(f"fp16: this model cannot be converted: {brief(error)}") from None
    target = save(model, work / MODEL_FILE)
    tools = {**candidate.tools, "onnxruntime": ort.__version__}
    return replace(candidate, path=target, precision="fp16", tools=tools)
