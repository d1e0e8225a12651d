"""ONNX to a TensorRT or TensorRT-RTX engine: one builder for both, whose Python interfaces are the same.

TensorRT 11 knows strongly typed networks only: the engine computes in the types that the ONNX file has, so FP16 and
INT8 engines are built from FP16 and from explicitly quantised files. A free axis needs a range, in which the engine is
optimised for one size. An engine fits the TensorRT version and the kind of GPU it was built for, and cannot be
converted any further; it can also be left to the replica that will need it, which builds it from the ONNX file and a
recipe in the artifact (`on_load`). Builders can abort the process, so they run in one of their own (see
`converters.worker`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from cluster.errors import ConversionFailed
from cluster.tensors import ANY, TensorSpec
from converters.candidate import Candidate, Case, Options, Say
from converters.isolated import describe, run_task
from converters.onnx import bf16, fp8_trt
from converters.onnx.file import MODEL_FILE, read, save
from converters.ranges import AxisRange, parse_ranges
from converters.tensorrt.on_load import ENGINE_FILE
from converters.tensorrt.recipe import EXTRA, ON_LOAD, Profile, Recipe

LEAST_MAJOR = 11  # older ones take weakly typed networks, and calibrators instead of quantised files
MAX_MESSAGES = 5

BUILT = "built, not executed here: an engine runs on the kind of GPU it was built for (--device gpu)"
LEFT = "not built here: the first replica that loads it builds the engine for its GPU and compares it with the sample"
COMPARED = "What was compared is the ONNX file it is built from"
NOT_TIMED = "TensorRT-RTX times nothing when it builds"
ROUNDED = {"bf16": bf16.ROUNDED, "fp8": fp8_trt.ROUNDED}


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """A TensorRT engine. Raises: ConversionFailed if an axis has no range, or TensorRT cannot build it."""
    return _engine(candidate, work, options, say, "tensorrt")


def convert_rtx(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """A TensorRT-RTX engine, which needs no GPU to be built. Raises: as `convert`."""
    return _engine(candidate, work, options, say, "tensorrt_rtx")


def _engine(candidate: Candidate, work: Path, options: Options, say: Say, module: str) -> Candidate:
    stand_in = candidate.stand_in or candidate.path
    inputs, _ = describe(stand_in)
    most = min(options.max_rows, candidate.max_rows)
    profile = profile_of(inputs, most, parse_ranges(options.dynamic))
    refuse_outside(candidate.cases, profile)
    compared = ROUNDED.get(candidate.precision, COMPARED)
    made = replace(candidate, format=module.replace("_", "-"), max_rows=most, stand_in=stand_in)
    if options.timing_cache is not None and (options.engine == ON_LOAD or module == "tensorrt_rtx"):
        say(f"the timing cache has no effect: {'nothing is built here' if options.engine == ON_LOAD else NOT_TIMED}")
    if options.engine == ON_LOAD:
        say("leaving the engine to the GPU that serves it")
        recipe = Recipe(candidate.precision, most, dict(profile))
        path = save(read(candidate.path), work / MODEL_FILE)
        return replace(
            made, path=path, extra={**candidate.extra, EXTRA: recipe.to_json()}, unexecuted=f"{LEFT}. {compared}"
        )
    say("building the engine")
    engine = work / ENGINE_FILE
    cache = str(options.timing_cache.absolute()) if options.timing_cache is not None else None
    request = {
        "task": "engine",
        "module": module,
        "model": str(candidate.path),
        "engine": str(engine),
        "profile": {name: list(shapes) for name, shapes in profile.items()},
        "timing_cache": cache,
    }
    reply = run_task(request, "building the engine")
    here = options.device == "gpu"
    return replace(
        made,
        path=engine,
        tools={**candidate.tools, module: reply["version"]},
        extra={**candidate.extra, "profile": {key: list(shapes) for key, shapes in profile.items()}},
        unexecuted="" if here else f"{BUILT}. {compared}",
        stand_in=None if here else stand_in,
    )


def profile_of(inputs: Sequence[TensorSpec], max_rows: int, ranges: Sequence[AxisRange]) -> Profile:
    """Smallest, best and largest shape of each input with free axes. Rows are best at their largest: that is when
    speed matters.

    Raises: ConversionFailed for a free axis without a range.
    """
    stated = {(r.name, r.axis): (r.low, r.typical, r.high) for r in ranges}
    found: dict[str, tuple[list[int], list[int], list[int]]] = {}
    for spec in inputs:
        if ANY not in spec.shape:
            continue
        sizes: list[tuple[int, int, int]] = []
        for axis, size in enumerate(spec.shape):
            if size != ANY:
                sizes.append((size, size, size))
            elif axis == 0:
                sizes.append((1, max_rows, max_rows))
            elif (spec.name, axis) in stated:
                sizes.append(stated[spec.name, axis])
            else:
                raise ConversionFailed(
                    f"TensorRT needs a range for every free axis: --dynamic {spec.name}:{axis}=MIN..MAX"
                )
        low, best, high = ([size[i] for size in sizes] for i in range(3))
        found[spec.name] = (low, best, high)
    return found


def refuse_outside(cases: Sequence[Case], profile: Profile) -> None:
    """Raises: ConversionFailed for data of sizes that the engine will not take; rows are cut to what it takes."""
    for case in cases:
        for name, (low, _, high) in profile.items():
            shape = case.inputs[name].shape
            for axis, size in list(enumerate(shape))[1:]:
                if not low[axis] <= size <= high[axis]:
                    raise ConversionFailed(
                        f"{case.origin}: {name} of shape {list(shape)} is outside of --dynamic "
                        f"{name}:{axis}={low[axis]}..{high[axis]}"
                    )


def build(request: Mapping[str, Any]) -> dict[str, Any]:
    """Build an engine file, as `converters.worker` is asked to.

    Returns: the TensorRT version that built it.

    Raises: ConversionFailed with what the parser or the builder said.
    """
    trt = import_module(request["module"])
    plan, cache = build_plan(
        trt,
        Path(request["model"]),
        {name: tuple(shapes) for name, shapes in request["profile"].items()},
        _read(request["timing_cache"]),
        request.get("workspace_bytes", 0),
        request.get("capability", ""),
    )
    Path(request["engine"]).write_bytes(plan)
    if request["timing_cache"] is not None:
        Path(request["timing_cache"]).write_bytes(cache)
    return {"version": str(trt.__version__)}


def build_plan(
    trt: Any, model: Path, profile: Profile, timing_cache: bytes, workspace_bytes: int = 0, capability: str = ""
) -> tuple[bytes, bytes]:
    """The serialised engine of an ONNX file, and the timing cache with what was learned.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        profile: Smallest, best and largest shapes by input, for inputs with free axes.
        timing_cache: An earlier build's, or empty.
        workspace_bytes: The most memory of the GPU that a layer may use while it computes; 0: all of it.
        capability: The GPU's compute capability, as 7.5, for TensorRT-RTX to build for only that; "": for those that
            it builds for by itself.

    Raises: ConversionFailed.
    """
    if trt.__name__ == "tensorrt" and int(str(trt.__version__).split(".")[0]) < LEAST_MAJOR:
        raise ConversionFailed(f"tensorrt: expected version {LEAST_MAJOR} or newer, got {trt.__version__}")
    log = _log_of(trt)
    builder = trt.Builder(log)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        said = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise ConversionFailed(f"TensorRT cannot read this model: {_brief(said or log.messages)}")
    config = builder.create_builder_config()
    if capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)
    if workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if profile:
        shapes = builder.create_optimization_profile()
        for name, (low, best, high) in profile.items():
            shapes.set_shape(name, low, best, high)
        if config.add_optimization_profile(shapes) < 0:
            raise ConversionFailed(f"TensorRT refuses the ranges {dict(profile)}: {_brief(log.messages)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TensorRT-RTX has the calls, without effect
        config.set_timing_cache(config.create_timing_cache(timing_cache), False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ConversionFailed(f"TensorRT cannot build this model: {_brief(log.messages)}")
        cache = config.get_timing_cache()
        learned = bytes(memoryview(cache.serialize())) if cache is not None else b""
    return bytes(memoryview(plan)), learned


def _log_of(trt: Any) -> Any:
    """A TensorRT logger that keeps errors, to be told instead of printed."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.messages.append(text)

    return Log()


def _brief(messages: Sequence[str]) -> str:
    return "; ".join(" ".join(text.split())[:300] for text in messages[:MAX_MESSAGES]) or "it gave no reason"


def _read(path: str | None) -> bytes:
    file = Path(path) if path is not None else None
    return file.read_bytes() if file is not None and file.is_file() else b""
