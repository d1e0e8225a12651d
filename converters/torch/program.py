"""PyTorch models as exported programs (`.pt2`), to be served by PyTorch itself.

For models that have no ONNX form, or whose answers must be PyTorch's to the bit. Serving needs torch on every node.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from cluster.errors import ConversionFailed, EngineFailed
from converters.candidate import Candidate, Options, Say
from converters.interface import write_order
from converters.onnx.failures import brief
from converters.torch.choice import check_mode, with_choice
from converters.torch.compiled import compile_ahead
from converters.torch.onnx import export, open_source, output_names, quiet
from converters.torch.pt2_runtime import specs_of
from converters.torch.runtime import device_of

MODEL_FILE = "model.pt2"


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """The model as a `.pt2` with the torch model's own answers as reference.

    Raises: InvalidRequest if data, specs or factory are wrong; ConversionFailed if torch cannot export the model.
    """
    check_mode(options)
    with quiet():
        found = open_source(candidate, options, say)
        say("exporting the program")
        program = export(found.call, found.cases[0]) if found.program is None else found.program
        program.example_inputs = None  # they are the user's data
        path = work / MODEL_FILE
        try:
            torch.export.save(program, path)
        except Exception as error:
            raise ConversionFailed(f"torch.export cannot save it: {type(error).__name__}: {brief(error)}") from None
    names = [spec.name for spec in found.call.specs]
    write_order(path, names, list(output_names(found.call, found.cases[0])))
    made = replace(found.written(path, candidate), format="pytorch")

    def compile_first() -> float:
        try:
            return compile_ahead(path, options.threads, device_of(options.device))
        except EngineFailed as error:
            raise ConversionFailed(error.message) from None

    return with_choice(made, specs_of(path, program, found.call), found.options, say, compile_first)
