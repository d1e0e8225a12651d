"""ONNX with ONNX Runtime's graph optimisations done once, beforehand: shorter loading, same answers.

Only the portable level: what ONNX Runtime does beyond `extended` (blocked memory layouts) fits one kind of CPU.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime as ort

from cluster.errors import ConversionFailed
from converters.candidate import Candidate, Options, Say
from converters.onnx.failures import brief
from converters.onnx.file import DATA_FILE, MODEL_FILE, is_large


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """`candidate` with fused nodes, for ONNX Runtime only. Raises: ConversionFailed."""
    say("optimising the graph")
    before = _nodes(candidate.path)
    target = work / MODEL_FILE
    session = ort.SessionOptions()
    session.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session.optimized_model_filepath = str(target)
    session.log_severity_level = 3
    if is_large(candidate.path):
        session.add_session_config_entry("session.optimized_model_external_initializers_file_name", DATA_FILE)
        session.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        ort.InferenceSession(str(candidate.path), session, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConversionFailed(f"ONNX Runtime cannot optimise this model: {brief(error)}") from None
    note = f"ONNX Runtime's fusions left {_nodes(target)} of {before} nodes"
    tools = {**candidate.tools, "onnxruntime": ort.__version__}
    return replace(candidate, path=target, tools=tools, notes=(*candidate.notes, note))


def _nodes(path: Path) -> int:
    return len(onnx.load(path, load_external_data=False).graph.node)
