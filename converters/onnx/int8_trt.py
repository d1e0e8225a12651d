"""FP32 ONNX to INT8 as TensorRT reads it: explicit quantise/dequantise nodes, everything signed and symmetric.

TensorRT's parser takes no zero points but 0 and no INT32 biases. On a CPU this flavour is no faster than FP32.
"""

from __future__ import annotations

from pathlib import Path

from onnxruntime.quantization import QuantType

from converters.candidate import Candidate, Options, Say
from converters.onnx.int8 import Flavour, quantised

TRT = Flavour(
    QuantType.QInt8,
    {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "AddQDQPairToWeight": True,
        "QuantizeBias": False,
    },
)


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` in symmetric INT8. Raises: as `converters.onnx.int8.convert`."""
    return quantised(candidate, work, options, say, TRT)
