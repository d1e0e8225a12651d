"""Which conversions exist, what each needs installed, and the way from a source to a target.

Entries are names, so that the table loads without any framework.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from importlib.util import find_spec

from cluster.errors import ConversionFailed
from converters.formats import Format

Step = tuple[Format, Format]

# Each names `convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate`.
CONVERTERS: dict[Step, str] = {
    (Format.TORCH, Format.ONNX): "converters.torch_onnx:convert",
    (Format.PT2, Format.ONNX): "converters.torch_onnx:convert",
    (Format.ONNX_FILE, Format.ONNX): "converters.onnx_file:convert",
    (Format.ONNX, Format.INT8): "converters.onnx_int8:convert",
}

# Modules that a step imports; the extra that brings them is named where they are missing.
NEEDS: dict[Step, tuple[str, ...]] = {
    (Format.TORCH, Format.ONNX): ("torch", "onnx", "onnxscript", "safetensors"),
    (Format.PT2, Format.ONNX): ("torch", "onnx", "onnxscript"),
    (Format.ONNX_FILE, Format.ONNX): ("onnx", "onnxruntime"),
    (Format.ONNX, Format.INT8): ("onnx", "onnxruntime"),
}

EXTRA_OF = {"torch": "torch", "onnxscript": "torch", "safetensors": "torch"}


@dataclass(frozen=True, slots=True)
class Route:
    """One step, with the modules it needs that are not installed."""

    source: Format
    target: Format
    needs: tuple[str, ...]
    missing: tuple[str, ...]


def routes() -> tuple[Route, ...]:
    """Every step of the table."""
    return tuple(Route(step[0], step[1], NEEDS[step], _missing(step)) for step in CONVERTERS)


def way(source: Format, target: Format) -> tuple[Step, ...]:
    """The shortest chain of steps from `source` to `target`.

    Raises: ConversionFailed if there is none, or if a step of it needs a module that is not installed.
    """
    steps = shortest(source, target)
    missing = sorted({name for step in steps for name in _missing(step)})
    if missing:
        extras = sorted({EXTRA_OF[name] for name in missing if name in EXTRA_OF})
        hint = f" (pip install 'prism-serving[{','.join(extras)}]')" if extras else ""
        raise ConversionFailed(f"{source} to {target} needs {', '.join(missing)}, not installed{hint}")
    return steps


def shortest(source: Format, target: Format) -> tuple[Step, ...]:
    """The shortest chain of steps, installed or not. Raises: ConversionFailed if there is none."""
    queue: deque[tuple[Step, ...]] = deque((step,) for step in CONVERTERS if step[0] == source)
    seen = {source}
    while queue:
        chain = queue.popleft()
        end = chain[-1][1]
        if end == target:
            return chain
        if end not in seen:
            seen.add(end)
            queue.extend((*chain, step) for step in CONVERTERS if step[0] == end)
    raise ConversionFailed(f"no conversion leads from {source} to {target}")


def _missing(step: Step) -> tuple[str, ...]:
    return tuple(name for name in NEEDS[step] if find_spec(name) is None)
