"""TorchScript archives, checked and written anew, to be served by PyTorch itself.

For models that exist as TorchScript only, or whose Python-like control flow has no ONNX form.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cluster.errors import ConversionFailed
from cluster.tensors import ANY, TensorSpec
from converters.candidate import Candidate, Options, Say
from converters.onnx.failures import brief
from converters.torch.choice import check_mode, with_choice
from converters.torch.onnx import Source, open_source, output_names, quiet
from converters.torch.runtime import dtype_name
from converters.torch.script import write_plain
from converters.torch.script_runtime import frozen, write_specs

MODEL_FILE = "model.pt"


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """The archive in evaluation mode, with the model's own answers as reference.

    Raises: InvalidRequest if data or specs are wrong; ConversionFailed if it does not run, or reaches out of torch:
        what serves trusts no archive.
    """
    check_mode(options)
    with quiet():
        found = open_source(candidate, options, say)
        path = work / MODEL_FILE
        try:
            torch.jit.save(found.call.module, str(work / "loaded.pt"))
        except Exception as error:
            raise ConversionFailed(f"torch.jit cannot save it: {brief(error)}") from None
    _write(work / "loaded.pt", path)
    outputs = _outputs(found)
    write_specs(path, found.call.specs, outputs)
    made = replace(found.written(path, candidate), format="torchscript")

    def freeze_first() -> float:
        frozen(found.call.module)
        return 0.0  # loading does it again, in no time worth keeping

    return with_choice(made, (found.call.specs, outputs), found.options, say, freeze_first)


def _write(saved: Path, path: Path) -> None:
    """The plain archive of what torch has saved, which is then gone."""
    try:
        with path.open("wb") as target:
            write_plain(saved, target)
    except ConversionFailed as error:
        raise ConversionFailed(f"it cannot be served, as what serves trusts no archive: {error.message}") from None
    finally:
        saved.unlink()


def _outputs(found: Source) -> tuple[TensorSpec, ...]:
    """What the model was seen to answer with; sizes that differed between calls are free."""
    names = list(output_names(found.call, found.cases[0]))
    specs = []
    for i, name in enumerate(names):
        seen = [answer[i] for answer in found.reference]
        dtype = dtype_name(torch.from_numpy(seen[0]).dtype)
        ranks = {array.ndim for array in seen}
        if dtype is None or len(ranks) > 1 or any(array.dtype != seen[0].dtype for array in seen):
            raise ConversionFailed(f"output {name}: its type or number of dimensions varies")
        sizes = np.array([array.shape for array in seen]).T
        shape = tuple(int(s[0]) if len(set(s.tolist())) == 1 else ANY for s in sizes)
        specs.append(TensorSpec(name, dtype, shape))
    return tuple(specs)
