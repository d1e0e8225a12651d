"""The other side of `converters.isolated`: `python -m converters.worker REQUEST RESULT` runs one task and exits.

`convert` is a whole conversion (`converters.apart`). What runs for any other task is what will serve: only runtimes are
imported, and no converter but the one whose builder may abort (an engine's).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cluster.artifact import Artifact
from cluster.errors import ServingError
from converters.candidate import Options
from converters.formats import Format
from converters.interface import TRUST


def describe(request: dict[str, Any]) -> dict[str, Any]:
    """The inputs and outputs of a model file, as the runtime of its format sees them."""
    from converters.runtime import describe_model

    inputs, outputs = describe_model(request["format"], Path(request["model"]))
    return {
        side: [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in specs]
        for side, specs in (("inputs", inputs), ("outputs", outputs))
    }


def outputs(request: dict[str, Any]) -> dict[str, Any]:
    """Run each case through the artifact's runtime; outputs go to an `.npz`, a failed case's error into the reply."""
    from converters.runtime import open_runtime

    artifact = Artifact.read(Path(request["artifact"]))
    runtime = open_runtime(artifact, threads=request["threads"], accelerator=request["device"])
    found: dict[str, np.ndarray] = {}
    errors: list[str | None] = []
    with np.load(request["cases"], allow_pickle=False) as data:
        for case in range(request["count"]):
            inputs = tuple(data[f"{case}/{i}"] for i in range(len(runtime.signature.inputs)))
            try:
                answers = runtime.run(inputs)
            except ServingError as error:
                errors.append(error.message)
                continue
            errors.append(None)
            for i, array in enumerate(answers):
                found[f"{case}/{i}"] = _plain(array)
    np.savez(request["outputs"], **found)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for a keyword
    return {"errors": errors}


def profile(request: dict[str, Any]) -> dict[str, Any]:
    """Measure the artifact; see `converters.proof.profile`."""
    from converters.proof.profile import measure

    return measure(Path(request["artifact"]), request["threads"], request["budget_s"], request["device"])


def _plain(array: np.ndarray) -> np.ndarray:
    """Text as numpy's own kind, which needs no pickle. Bytes that are no UTF-8 become lone surrogates, which
    `converters.proof.parity` makes bytes again."""
    if array.dtype != object:
        return array
    texts = [
        item.decode(errors="surrogateescape") if isinstance(item, bytes) else str(item)
        for item in array.ravel().tolist()
    ]
    return np.array(texts, dtype=np.str_).reshape(array.shape)


def engine(request: dict[str, Any]) -> dict[str, Any]:
    """Build a TensorRT engine; see `converters.tensorrt.engine`."""
    from converters.tensorrt.engine import build

    return build(request)


def layers(request: dict[str, Any]) -> dict[str, Any]:
    """What a source is built of, or nothing where it does not tell; see `converters.layers`."""
    from converters.layers import layers_of

    found = layers_of(Path(request["source"]), Format(request["format"]))
    return asdict(found) if found is not None else {}


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Make targets in the request's work folder, telling what is done next; see `converters.build.make`."""
    from converters.build import make

    _end_with_parent(request["work"], request["temporary"])
    os.set_inheritable(request["progress"], False)
    with os.fdopen(request["progress"], "w", encoding="utf-8", buffering=1) as channel:

        def tell(event: dict[str, Any]) -> None:
            channel.write(json.dumps(event) + "\n")

        failures = make(
            Path(request["source"]),
            [Format(name) for name in request["targets"]],
            Path(request["work"]),
            Options.from_json(request["options"]),
            lambda text: tell({"say": text}),
            request["tolerant"],
            lambda mark: tell(asdict(mark)),
        )
    return {"failures": failures}


def _end_with_parent(*folders: str) -> None:
    """End this process, what it started and the folders it writes to, when the one that asked dies: standard input is
    closed then."""
    life = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # what is started here, or asks for input, must not hold or read it
    os.close(null)

    def watch() -> None:
        while os.read(life, 1):
            pass
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def compile_program(request: dict[str, Any]) -> dict[str, Any]:
    """Compile an exported program for this machine; see `converters.torch.compiled`."""
    from converters.torch.compiled import package

    return package(request)


def choose(request: dict[str, Any]) -> dict[str, Any]:
    """Measure an artifact without and with compiled code; see `converters.torch.choice`."""
    from converters.torch.choice import measure_both

    return measure_both(request)


TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "describe": describe,
    "outputs": outputs,
    "profile": profile,
    "engine": engine,
    "compile": compile_program,
    "choose": choose,
    "convert": convert,
    "layers": layers,
}


def main(request_file: str, result_file: str) -> None:
    """Run the request's task and write its reply, or its error, to `result_file`."""
    request = json.loads(Path(request_file).read_bytes())
    if request.get("trusted"):
        os.environ[TRUST] = "1"  # this process runs for one who trusts the model
    try:
        reply = {"ok": TASKS[request["task"]](request)}
    except ServingError as error:
        reply = {"error": {"name": type(error).__name__, "message": error.message}}
    written = Path(f"{result_file}.part")
    written.write_text(json.dumps(reply))
    written.rename(result_file)  # all of it, or nothing


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
