"""Sessions of ONNX Runtime on the providers that were asked for, or an error: the shell of `providers`."""

from __future__ import annotations

import ctypes
import io
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import onnxruntime as ort

from cluster.errors import EngineFailed
from converters.onnx.failures import brief
from converters.onnx.providers import CPU, CUDA, TENSORRT, rungs, shortfall

log = logging.getLogger(__name__)

TENSORRT_LIBRARY = "libnvinfer.so.10"  # what ONNX Runtime's provider is linked with
_FAILED = "Failed to load "  # how ONNX Runtime begins a line about a library that it does not find

Create = Callable[..., Any]
"""`onnxruntime.InferenceSession`, or what stands in for it in a test."""


def open_session(
    path: Path,
    threads: int = 1,
    accelerator: str = "cpu",
    provider: str = "auto",
    options: Mapping[str, Mapping[str, str]] | None = None,
    create: Create | None = None,
) -> ort.InferenceSession:
    """A session over the model file.

    Args:
        accelerator, provider: As `providers.rungs` has them; with "auto" a lesser provider is logged.
        options: What to tell a provider, by its name.

    Raises: EngineFailed if the model cannot be loaded, or would run on less than was asked for. InvalidRequest.
    """
    tries = rungs(accelerator, provider, ort.get_available_providers())
    for rung in tries[:-1]:
        try:
            return _started(path, threads, rung, options or {}, create)
        except EngineFailed as error:
            log.warning("%s: a lesser provider will do: %s", path.name, error.message)
    return _started(path, threads, tries[-1], options or {}, create)


def _started(
    path: Path,
    threads: int,
    rung: tuple[str, ...],
    options: Mapping[str, Mapping[str, str]],
    create: Create | None,
) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    # Spinning threads of one replica take the core of another.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if rung[0] != CPU:
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    missing = _load_libraries(rung)
    try:
        asked = [(name, dict(options.get(name, {}))) for name in rung]
        # Its own second try, with other providers, would only print that it is one.
        session = (create or ort.InferenceSession)(str(path), settings, providers=asked, enable_fallback=0)
        placed = placed_by(session) if rung[0] != CPU else None
    except Exception as error:
        raise EngineFailed(f"{path.name}: ONNX Runtime cannot load it: {brief(error)}") from None
    lacking = shortfall(rung, session.get_providers(), placed)
    if lacking:
        raise EngineFailed(f"accelerator: {lacking}{missing}")
    return session


def placed_by(session: Any) -> dict[str, int] | None:
    """Nodes of the model by the provider that computes them; None where this ONNX Runtime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return None
    counts: Counter[str] = Counter()
    for part in tell():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


def tensorrt_version(load: Callable[[str], Any] = ctypes.CDLL) -> str:
    """The version of the TensorRT that ONNX Runtime's provider will find, as "101601".

    Raises: EngineFailed if it would find none.
    """
    with suppress(ImportError):
        import_module("tensorrt")  # loads its libraries from where pip puts them
    try:
        return str(load(TENSORRT_LIBRARY).getInferLibVersion())
    except OSError as error:
        raise EngineFailed(
            f"provider: expected tensorrt, but {TENSORRT_LIBRARY} cannot be loaded: {brief(error)} "
            "(pip install 'prism-serving[ort-tensorrt]')"
        ) from None


def _load_libraries(rung: tuple[str, ...]) -> str:
    """What is missing, in brackets, or "". CUDA, cuDNN and TensorRT lie in Python packages, where the dynamic linker
    does not look."""
    said = io.StringIO()
    if CUDA in rung and hasattr(ort, "preload_dlls"):
        with redirect_stdout(said):  # it prints what it does not find
            ort.preload_dlls()
    if TENSORRT in rung:
        tensorrt_version()
    failed = [line.removeprefix(_FAILED).split(":")[0] for line in said.getvalue().splitlines() if _FAILED in line]
    return f" (not found: {', '.join(failed)})" if failed else ""
