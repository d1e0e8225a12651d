"""TensorFlow SavedModel to TFLite: float, or with FP16 or INT8 weights, or in INT8 altogether."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cluster.errors import ConversionFailed, InvalidRequest
from converters.candidate import Candidate, Options, Say
from converters.interface import write_order
from converters.onnx.failures import brief
from converters.samples import calibration_calls
from converters.tensorflow.runtime import describe_model, serving_graph, serving_key

MODEL_FILE = "model.tflite"


def convert_float(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` as FP32 TFLite. Raises: ConversionFailed."""
    return _written(candidate, work, _converter(candidate), candidate.precision)


def convert_fp16(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` as TFLite with FP16 weights, computed in FP32 on CPUs. Raises: ConversionFailed."""
    converter = _converter(candidate)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return _written(candidate, work, converter, "fp16")


def convert_dynamic(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` as TFLite with INT8 weights; activations get their ranges at run time. Raises: ConversionFailed."""
    converter = _converter(candidate)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return _written(candidate, work, converter, "int8")


def convert_int8(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` as TFLite that computes in INT8 throughout; its inputs and outputs keep their types.

    Raises: InvalidRequest without calibration data, ConversionFailed if an operator has no INT8 form.
    """
    if options.calibrate is None:
        raise InvalidRequest("calibrate: INT8 needs calibration data, got none")
    inputs, _ = describe_model(candidate.path)
    calls = calibration_calls(options.calibrate, inputs, batched=options.max_rows > 1)
    say(f"quantising to INT8 with {len(calls)} calibration calls")
    key = serving_key(serving_graph(candidate.path))
    converter = _converter(candidate)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    def examples() -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
        for call in calls:
            yield key, dict(call)

    converter.representative_dataset = examples
    return _written(candidate, work, converter, "int8")


def _converter(candidate: Candidate) -> Any:
    key = serving_key(serving_graph(candidate.path))
    return tf.lite.TFLiteConverter.from_saved_model(str(candidate.path.parent), signature_keys=[key])


def _written(candidate: Candidate, work: Path, converter: Any, precision: str) -> Candidate:
    inputs, outputs = describe_model(candidate.path)
    path = work / MODEL_FILE
    try:
        path.write_bytes(converter.convert())
    except Exception as error:
        raise ConversionFailed(f"TFLite: {_reason(error)}") from None
    write_order(path, [spec.name for spec in inputs], [spec.name for spec in outputs])
    tools = {**candidate.tools, "tensorflow": tf.__version__}
    return replace(candidate, path=path, format="tflite", precision=precision, tools=tools)


def _reason(error: Exception) -> str:
    """The part of the converter's pages that names what it lacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "needs" in line or "ops:" in line.lower() or line.startswith("tf.")]
    return brief(Exception(" ".join(telling[:4]) or " ".join(lines[:2]) or type(error).__name__))
