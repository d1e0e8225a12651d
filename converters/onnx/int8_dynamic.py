"""FP32 ONNX to INT8 with ranges taken at run time: for transformers, whose activations no fixed range fits.

Only matrix products are quantised; that is where a transformer's time goes, and its tables and norms stay exact.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
from onnxruntime.quantization import QuantType, quantize_dynamic

from cluster.errors import ConversionFailed
from converters.candidate import Candidate, Options, Say
from converters.onnx.file import MODEL_FILE, is_large, read, save
from converters.onnx.int8 import prepared, refuse_quantised

NOTE = "INT8 ranges are taken over a whole call, so a row's answer depends a little on the rows that share its call"


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` with INT8 matrix products. Raises: ConversionFailed if it has none, or ONNX Runtime cannot."""
    refuse_quantised(candidate)
    say("quantising matrix products to INT8")
    with prepared(candidate.path, work) as (source, made):
        quantize_dynamic(
            str(source),
            str(made),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=is_large(candidate.path),
        )
        model = read(made)
    kinds = {node.op_type for node in model.graph.node}
    if not kinds & {"MatMulInteger", "DynamicQuantizeLinear"}:
        raise ConversionFailed("int8-dynamic: this model has no matrix product with fixed weights; int8 may do")
    target = save(model, work / MODEL_FILE)
    tools = {**candidate.tools, "onnxruntime": ort.__version__}
    return replace(candidate, path=target, precision="int8", tools=tools, notes=(*candidate.notes, NOTE))
