"""Runs a model in a process of its own, so that an abort of the interpreter becomes an error instead of a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import ConversionFailed, EngineFailed, error_from_wire
from cluster.tensors import TensorSpec
from converters.layers import Layers
from converters.runtime import Arrays, Specs

LASTING = "PRISM_LASTING_TMPDIR"  # where temporary files are that a process here is to leave behind

TIMEOUT_S = 900.0
LAST_LINES, LINE_CHARACTERS = 3, 300


def run_task(
    request: dict[str, Any], doing: str, timeout_s: float = TIMEOUT_S, trusted: bool = False
) -> dict[str, Any]:
    """The reply of `converters.worker` to one request; `trusted` lets it load what may do more than compute.

    Raises: ConversionFailed if the process dies or takes too long, and whatever serving error the task raised.
    """
    with tempfile.TemporaryDirectory(prefix="prism-", ignore_cleanup_errors=True) as folder:
        request_file, result_file = Path(folder, "request.json"), Path(folder, "result.json")
        request_file.write_text(json.dumps({**request, "trusted": trusted}))
        # -P: a file in the current directory must not stand in for a module.
        command = [sys.executable, "-P", "-m", "converters.worker", str(request_file), str(result_file)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False, env=environment(folder))
        except subprocess.TimeoutExpired:
            raise ConversionFailed(f"{doing}: no result after {timeout_s:.0f} s") from None
        if done.returncode != 0 or not result_file.is_file():
            raise ConversionFailed(f"{doing}: the process {ending(done.returncode, done.stderr)}")
        reply = json.loads(result_file.read_bytes())
    if "error" in reply:
        error = error_from_wire(reply["error"]["name"], f"{doing}: {reply['error']['message']}")
        raise ConversionFailed(error.message) if isinstance(error, EngineFailed) else error
    result: dict[str, Any] = reply["ok"]
    return result


def environment(folder: str) -> dict[str, str]:
    """Of a process whose temporary files lie in `folder`: one that is killed removes none itself."""
    return {**os.environ, LASTING: str(lasting()), "TMPDIR": folder}


def lasting() -> Path:
    """The folder of temporary files that outlive this process."""
    return Path(os.environ.get(LASTING, tempfile.gettempdir()))


def ending(code: int, printed: bytes) -> str:
    """How a process ended, for people, with the last lines of what it printed."""
    how = f"failed ({code})" if code >= 0 else f"was killed by {_signal_name(-code)}"
    if code == -signal.SIGKILL:
        how += " (out of memory?)"
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in printed.decode(errors="replace"))
    lines = [line.strip()[:LINE_CHARACTERS] for line in text.splitlines() if line.strip()]
    return f"{how}: {' | '.join(lines[-LAST_LINES:])}" if lines else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe(model: Path, format_name: str = "onnx") -> tuple[Specs, Specs]:
    """Input and output specs of a model file. Raises: as `run_task`, and for types the protocol does not have."""
    reply = run_task({"task": "describe", "model": str(model), "format": format_name}, "loading the model")
    inputs, outputs = (
        tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in reply[side])
        for side in ("inputs", "outputs")
    )
    return inputs, outputs


def layers(source: Path, format_name: str) -> Layers | None:
    """As `layers.layers_of`; None, too, for a file that ends the process which reads it."""
    try:
        found = run_task({"task": "layers", "source": str(source), "format": format_name}, "reading the source")
    except ConversionFailed:
        return None
    return Layers(**found) if found else None


def run_cases(
    artifact: Path, cases: Sequence[Arrays], threads: int, device: str = "cpu", trusted: bool = False
) -> list[Arrays | str]:
    """Outputs of each case through the runtime that serves the artifact, or the error it gave.

    Raises: as `run_task`.
    """
    with tempfile.TemporaryDirectory(prefix="prism-") as folder:
        given, answered = Path(folder, "cases.npz"), Path(folder, "outputs.npz")
        arrays = {f"{c}/{i}": array for c, inputs in enumerate(cases) for i, array in enumerate(inputs)}
        np.savez(given, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for a keyword
        reply = run_task(
            {
                "task": "outputs",
                "artifact": str(artifact),
                "cases": str(given),
                "count": len(cases),
                "outputs": str(answered),
                "threads": threads,
                "device": device,
            },
            "running the converted model",
            trusted=trusted,
        )
        with np.load(answered, allow_pickle=False) as found:
            results: list[Arrays | str] = []
            for case, error in enumerate(reply["errors"]):
                count = sum(1 for name in found.files if name.startswith(f"{case}/"))
                results.append(tuple(found[f"{case}/{i}"] for i in range(count)) if error is None else error)
    return results
