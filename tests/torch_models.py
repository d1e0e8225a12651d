"""Small artifacts that PyTorch serves, written without converting or measuring anything.

Weights and samples are whole numbers, so that sums are exact in any order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.artifact import SAMPLE, Artifact, Manifest, hash_files, write_manifest
from cluster.tensors import ANY, Signature, TensorSpec
from converters.interface import write_order
from converters.torch.script_runtime import write_specs

INPUTS = (TensorSpec("x", "FP32", (ANY, 4)),)
OUTPUTS = (TensorSpec("scores", "FP32", (ANY, 3)), TensorSpec("best", "INT64", (ANY,)))


class Scores(torch.nn.Module):
    """Two outputs; where it is scripted, a loop whose end depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(4, 3).requires_grad_(False)
        self.dense.weight.copy_(torch.arange(12.0).reshape(3, 4) - 5)
        self.dense.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.relu(self.dense(x))
        return h, h.argmax(1)


class Halving(torch.nn.Module):
    """Halves its rows until all are small."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = Scores()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h, best = self.scores(x)
        small = h * 1.0
        while bool((small > 4.0).any()):
            small = torch.where(small > 4.0, small / 2, small)
        return small, best


def sample() -> np.ndarray:
    """FP32 [3, 4], whole numbers."""
    return np.arange(12, dtype=np.float32).reshape(3, 4) - 4


def write(path: Path, model_file: str, format_name: str, extra: dict[str, Any]) -> Artifact:
    """The manifest around a model file in `path`."""
    np.savez(path / SAMPLE, x=sample())
    manifest = Manifest(
        format=format_name,
        precision="fp32",
        model_file=model_file,
        signature=Signature(INPUTS, OUTPUTS, True, 16),
        source={"kind": "test", "sha256": ""},
        tools={"torch": str(torch.__version__)},
        files=hash_files(path),
        created="2000-01-01T00:00:00+00:00",
        extra=extra,
    )
    return write_manifest(path, manifest)


def program_artifact(path: Path) -> Artifact:
    """An exported program, as `--to pytorch` makes it."""
    path.mkdir(parents=True)
    shapes = {"x": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(Scores().eval(), (torch.from_numpy(sample()),), dynamic_shapes=shapes)
    torch.export.save(program, path / "model.pt2")
    write_order(path / "model.pt2", ["x"], [spec.name for spec in OUTPUTS])
    return write(path, "model.pt2", "pytorch", {})


def script_artifact(path: Path, compiled: bool = False) -> Artifact:
    """A TorchScript archive with control flow, as `--to torchscript` makes it."""
    path.mkdir(parents=True)
    torch.jit.save(torch.jit.script(Halving().eval()), str(path / "model.pt"))
    write_specs(path / "model.pt", INPUTS, OUTPUTS)
    entry = {"asked": "on", "kept": compiled, "why": "a test"}
    return write(path, "model.pt", "torchscript", {"compiled": {"cpu": entry}})


def frozen_script_artifact(path: Path) -> Artifact:
    """The same, served with its weights as constants."""
    return script_artifact(path, compiled=True)


MAKERS = [program_artifact, script_artifact, frozen_script_artifact]
