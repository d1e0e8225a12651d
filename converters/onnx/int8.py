"""FP32 ONNX to INT8 for CPUs: static quantisation with explicit quantise/dequantise nodes.

Unsigned activations, signed weights per channel, ranges from the smallest and largest value seen on the calibration
data. Per-tensor weights ruin networks with depthwise convolutions, so they are not offered.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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

from cluster.errors import ConversionFailed, InvalidRequest, ServingError
from converters.candidate import Candidate, Options, Say
from converters.isolated import describe
from converters.onnx.failures import brief
from converters.onnx.file import MODEL_FILE, is_large, read, save
from converters.samples import calibration_calls


@dataclass(frozen=True, slots=True)
class Flavour:
    """What a device wants of quantised activations, with further options of ONNX Runtime's quantiser.

    `operators` names the kinds of nodes to quantise; none: all that can be. `label` is what people are told.
    """

    activations: QuantType
    options: Mapping[str, Any] = field(default_factory=dict)
    operators: tuple[str, ...] = ()
    label: str = "INT8"


CPU = Flavour(QuantType.QUInt8)


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
    return quantised(candidate, work, options, say, CPU)


def quantised(candidate: Candidate, work: Path, options: Options, say: Say, flavour: Flavour) -> Candidate:
    """`candidate` in INT8 of this flavour. Raises: as `convert`."""
    if options.calibrate is None:
        raise InvalidRequest(f"calibrate: {flavour.label} needs calibration data, got none")
    refuse_quantised(candidate)
    inputs, _ = describe(candidate.path)
    calls = calibration_calls(options.calibrate, inputs, batched=options.max_rows > 1)
    say(f"quantising to {flavour.label} with {len(calls)} calibration calls")
    with prepared(candidate.path, work) as (source, made):
        quantize_static(
            str(source),
            str(made),
            _Cases(calls),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(flavour.operators) or None,
            per_channel=True,
            activation_type=flavour.activations,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=is_large(candidate.path),
            # Scales are adjusted to biases, which must have one dimension for that (ONNX Runtime 1.31).
            extra_options={**flavour.options, "QDQDisableWeightAdjustForInt32Bias": _has_wide_bias(source)},
        )
        model = read(made)
    if not any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        raise ConversionFailed(f"{flavour.label}: nothing in this model can be quantised")
    target = save(model, work / MODEL_FILE)
    tools = {**candidate.tools, "onnxruntime": ort.__version__}
    return replace(candidate, path=target, precision="int8", tools=tools)


def _has_wide_bias(file: Path) -> bool:
    """Whether a Gemm's bias has more dimensions than one, as [1, n], which ONNX allows."""
    graph = onnx.load(file, load_external_data=False).graph
    wide = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    return any(node.op_type == "Gemm" and wide.intersection(node.input[2:]) for node in graph.node)


def refuse_quantised(candidate: Candidate) -> None:
    """Raises: ConversionFailed if the model is in INT8 already."""
    if candidate.precision == "int8":
        raise ConversionFailed("the source is quantised already")


@contextmanager
def prepared(source: Path, work: Path) -> Iterator[tuple[Path, Path]]:
    """The model with shapes inferred and BatchNorm folded, as the quantisers want it, and where they may write.

    Both lie in a folder that lasts as long as the context, as what is called here leaves files under random names
    beside its own. Weights go into a file named after the model's, which onnx refuses to write if the current folder
    has one of that name: neither is called as an artifact's is.

    Raises: ConversionFailed for whatever ONNX Runtime raises inside the context.
    """
    large = is_large(source)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantiser logs advice through the root logger
    ort.set_default_logger_severity(3)
    try:
        with tempfile.TemporaryDirectory(prefix="prepared-", dir=work) as folder:
            file, made = Path(folder) / "prism-prepared.onnx", Path(folder) / "prism-quantised.onnx"
            quant_pre_process(
                str(source),
                str(file),
                skip_symbolic_shape=True,
                save_as_external_data=large,
                all_tensors_to_one_file=large,
            )
            _forget_weight_shapes(file)
            yield file, made
    except ServingError:
        raise
    except Exception as error:
        raise ConversionFailed(f"INT8: ONNX Runtime cannot quantise this model: {brief(error)}") from None
    finally:
        root.setLevel(level)
        ort.set_default_logger_severity(2)  # what it is by default; it cannot be asked


def _forget_weight_shapes(file: Path) -> None:
    """Take out stated shapes of weights: the quantiser transposes weights, and then refuses what was stated before."""
    model = onnx.load(file, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in weights]
    if len(kept) < len(model.graph.value_info):
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)
        onnx.save(model, file)
