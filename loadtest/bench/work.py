"""The models that are served: small graphs with seeded weights, so that every machine measures the same work.

T  two dense layers, 256-byte bodies: the server is everything
M  a residual network of 6 million weights on 3x64x64 pixels, 49 KB bodies: the model is most
E  every 56th pixel of 3x224x224, 600 KB bodies: bytes are everything
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import OperatorError

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "x", "y"
EXAMPLES = 8  # different requests, so that an answer that went to the wrong client is noticed

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Work:
    """One model and how it is asked.

    `connections` are the closed loops measured with the first format; other formats are measured with the most of
    them only. `formats` are those worth measuring (JSON for 600 KB bodies says nothing about a server).
    """

    name: str
    about: str
    shape: tuple[int, ...]
    max_batch_rows: int
    connections: tuple[int, ...]
    formats: tuple[str, ...]
    build: Callable[[np.random.Generator], onnx.ModelProto]
    open_loop: bool

    @property
    def body_bytes(self) -> int:
        return int(np.prod(self.shape)) * 4

    @property
    def model(self) -> str:
        """The name it is served under."""
        return f"bench-{self.name.lower()}"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A work whose files exist. `inputs` are float32 [EXAMPLES, *shape], `expected` the model's answers by row."""

    work: Work
    model_file: Path
    artifact: Path  # exists only after `write_artifact`
    inputs: Floats
    expected: Floats

    def matches(self, row: int, answer: Floats) -> bool:
        """Whether `answer` is the model's answer to `inputs[row]`, within 0.001 of the largest value."""
        want = self.expected[row].ravel()
        if answer.shape != want.shape or not np.isfinite(answer).all():
            return False
        return bool(np.abs(answer - want).max() <= 1e-3 * max(1e-6, float(np.abs(want).max())))


def prepare(work: Work, folder: Path) -> Prepared:
    """Build the model below `folder`, and its answers in this process."""
    raw = work.build(np.random.default_rng(7)).SerializeToString()
    place = folder / f"{work.name}-{hashlib.sha256(raw).hexdigest()[:12]}"
    place.mkdir(parents=True, exist_ok=True)
    model_file = place / "model.onnx"
    if not model_file.is_file():
        model_file.write_bytes(raw)
    inputs = np.random.default_rng(11).standard_normal((EXAMPLES, *work.shape), dtype=np.float32)
    session = open_session(model_file)
    expected = np.concatenate([session.run([OUTPUT], {INPUT: row[None]})[0] for row in inputs])
    return Prepared(work, model_file, place / "artifact", inputs, expected)


def write_artifact(prepared: Prepared) -> None:
    """Convert the model with `prism convert`, as a user would, unless that was done before.

    Raises: OperatorError with what the command said.
    """
    if (prepared.artifact / "manifest.json").is_file():
        return
    command = [sys.executable, "-m", "cluster", "convert", str(prepared.model_file), "-o", str(prepared.artifact)]
    command += ["--max-rows", str(prepared.work.max_batch_rows)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=dict(os.environ))
    if done.returncode != 0:
        raise OperatorError(f"{prepared.work.name}: prism convert: {(done.stderr or done.stdout).strip()[-400:]}")


def open_session(model_file: Path, threads: int = 1) -> Any:
    """An ONNX Runtime session with the settings that every contestant uses: the ones of Prism's own runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(model_file), options, providers=["CPUExecutionProvider"])


class Graph:
    """Nodes and weights as they are added; `draw` gives weights of the size that keeps values where they are."""

    def __init__(self, draw: np.random.Generator) -> None:
        self._draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        values = self._draw.standard_normal(shape, dtype=np.float32) * np.float32(gain * (2 / fan_in) ** 0.5)
        return self.constant(values)

    def constant(self, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def model(self, shape: tuple[int, ...], answer: tuple[int, ...]) -> onnx.ModelProto:
        """x float32 [rows, *shape] -> y float32 [rows, *answer]."""
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            self.nodes,
            "bench",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", *shape])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", *answer])],
            self._weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def mlp(draw: np.random.Generator) -> onnx.ModelProto:
    """64 -> 64 -> 10."""
    graph = Graph(draw)
    hidden = graph.add("Gemm", INPUT, graph.weight(64, 64), graph.weight(64, gain=0.1), transB=1)
    hidden = graph.add("Relu", hidden)
    graph.add("Gemm", hidden, graph.weight(10, 64), graph.weight(10, gain=0.1), output=OUTPUT, transB=1)
    return graph.model((64,), (10,))


def residual_network(draw: np.random.Generator) -> onnx.ModelProto:
    """ResNet-18's blocks (2, 2, 2, 2) with 48 channels to begin with, 100 classes, normalisation folded away.

    Source: He et al., Deep Residual Learning for Image Recognition, table 1.
    """
    graph = Graph(draw)

    def convolve(value: str, into: int, out: int, size: int, stride: int, gain: float = 1.0) -> str:
        weights = graph.weight(out, into, size, size, gain=gain)
        return graph.add(
            "Conv",
            value,
            weights,
            graph.weight(out, gain=0.05),
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[size // 2] * 4,
        )

    value = graph.add("Relu", convolve(INPUT, 3, 48, 7, 2))
    value = graph.add("MaxPool", value, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 48
    for stage in range(4):
        for block in range(2):
            out = 48 << stage
            stride = 2 if block == 0 and stage > 0 else 1
            inner = graph.add("Relu", convolve(value, channels, out, 3, stride))
            inner = convolve(inner, out, out, 3, 1, gain=0.4)
            if stride != 1 or channels != out:
                value = convolve(value, channels, out, 1, stride, gain=0.7)
            value = graph.add("Relu", graph.add("Add", inner, value))
            channels = out
    value = graph.add("Flatten", graph.add("GlobalAveragePool", value))
    graph.add("Gemm", value, graph.weight(100, channels), graph.weight(100, gain=0.1), output=OUTPUT, transB=1)
    return graph.model((3, 64, 64), (100,))


def sparse_pixels(_: np.random.Generator) -> onnx.ModelProto:
    """Every 56th pixel of each channel: 600 KB in, 192 bytes out, next to no arithmetic."""
    graph = Graph(np.random.default_rng(0))
    bounds = [graph.constant(np.array(values, dtype=np.int64)) for values in ([0, 0], [224, 224], [2, 3], [56, 56])]
    graph.add("Slice", INPUT, *bounds, output=OUTPUT)
    return graph.model((3, 224, 224), (3, 4, 4))


WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        Work("T", "MLP 64-64-10, 256-byte bodies", (64,), 64, (1, 32, 64), ("raw", "binary", "json"), mlp, False),
        Work(
            "M",
            "small residual network, 49 KB bodies",
            (3, 64, 64),
            16,
            (1, 32, 64),
            ("raw", "binary", "json"),
            residual_network,
            True,
        ),
        Work("E", "no compute, 600 KB bodies", (3, 224, 224), 8, (1, 32), ("raw", "binary"), sparse_pixels, False),
    )
}
