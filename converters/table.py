"""Which conversions exist, what each needs installed, and the way from a source to a target.

Entries are names, so that the table loads without any framework.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from importlib.util import find_spec

from cluster.errors import ConversionFailed, InvalidRequest
from converters.formats import SOURCES, Format


@dataclass(frozen=True, slots=True)
class Route:
    """One step from a format to another.

    Attributes:
        convert: `module:function` of `(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate`.
        needs: Modules that the step, and the runtime of what it makes, import.
        what: What is made, for people who choose a target.
        calibrates: Whether it needs the user's calibration data.
        builders: Modules that it can do without if what they build is left to the machine that serves it
            (`Options.engine`).
    """

    source: Format
    target: Format
    convert: str
    needs: tuple[str, ...]
    what: str
    calibrates: bool = False
    builders: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.needs if not _installed(name))

    @property
    def missing_builders(self) -> tuple[str, ...]:
        return tuple(name for name in self.builders if not _installed(name))


_ONNX = ("onnx", "onnxruntime")
_CLASSIC = ("sklearn", "skl2onnx", "onnxmltools", "skops", "xgboost", "lightgbm", *_ONNX)
_TFLITE = ("tensorflow", "ai_edge_litert")
_ENGINE_SOURCES = (
    (Format.ONNX, "FP32"),
    (Format.FP16, "FP16"),
    (Format.BF16, "BF16"),
    (Format.INT8_TRT, "INT8"),
    (Format.FP8_TRT, "FP8"),
)

ROUTES: tuple[Route, ...] = (
    Route(
        Format.TORCH,
        Format.ONNX,
        "converters.torch.onnx:convert",
        ("torch", "onnx", "onnxscript", "safetensors"),
        "FP32 ONNX, opset 20, free rows",
    ),
    Route(
        Format.PT2,
        Format.ONNX,
        "converters.torch.onnx:convert",
        ("torch", "onnx", "onnxscript"),
        "FP32 ONNX, opset 20, free rows",
    ),
    Route(
        Format.TORCHSCRIPT_FILE,
        Format.ONNX,
        "converters.torch.onnx:convert",
        ("torch", "onnx", "onnxscript"),
        "FP32 ONNX, opset 20, free rows",
    ),
    *(
        Route(
            source,
            Format.PYTORCH,
            "converters.torch.program:convert",
            ("torch", "onnx", "onnxscript", "safetensors"),
            "an exported program (.pt2), served by PyTorch",
        )
        for source in (Format.TORCH, Format.PT2)
    ),
    Route(
        Format.TORCHSCRIPT_FILE,
        Format.TORCHSCRIPT,
        "converters.torch.script_form:convert",
        ("torch", "onnx", "onnxscript"),
        "the TorchScript archive, checked, served by PyTorch",
    ),
    Route(Format.ONNX_FILE, Format.ONNX, "converters.onnx.file:convert", _ONNX, "the same model, checked"),
    Route(
        Format.ONNX,
        Format.OPTIMIZED,
        "converters.onnx.optimized:convert",
        _ONNX,
        "ONNX with ONNX Runtime's portable fusions",
    ),
    Route(
        Format.ONNX, Format.FP16, "converters.onnx.fp16:convert", _ONNX, "FP16 weights and arithmetic, for accelerators"
    ),
    Route(
        Format.ONNX, Format.BF16, "converters.onnx.bf16:convert", _ONNX, "BF16 for TensorRT, no ONNX Runtime on CPUs"
    ),
    Route(
        Format.ONNX,
        Format.INT8,
        "converters.onnx.int8:convert",
        _ONNX,
        "INT8 for CPUs: static, unsigned activations, weights per channel",
        calibrates=True,
    ),
    Route(
        Format.ONNX,
        Format.INT8_DYNAMIC,
        "converters.onnx.int8_dynamic:convert",
        _ONNX,
        "INT8 matrix products, ranges at run time: transformers on CPUs",
    ),
    Route(
        Format.ONNX,
        Format.INT8_TRT,
        "converters.onnx.int8_trt:convert",
        _ONNX,
        "INT8 for TensorRT: signed, symmetric, explicit Q/DQ",
        calibrates=True,
    ),
    Route(
        Format.ONNX,
        Format.FP8_TRT,
        "converters.onnx.fp8_trt:convert",
        _ONNX,
        "FP8 (E4M3) for TensorRT: matrix products, explicit Q/DQ",
        calibrates=True,
    ),
    *(
        Route(source, Format.ONNX, "converters.classic.to_onnx:convert", _CLASSIC, "FP32 ONNX of its predictions")
        for source in (Format.SKLEARN, Format.XGBOOST, Format.LIGHTGBM)
    ),
    Route(
        Format.ONNX,
        Format.TENSORFLOW,
        "converters.tensorflow.from_onnx:convert",
        ("tensorflow", "onnx"),
        "SavedModel with the names and free dimensions of the ONNX",
    ),
    Route(
        Format.SAVED_MODEL,
        Format.TENSORFLOW,
        "converters.tensorflow.source:convert_saved_model",
        ("tensorflow",),
        "the same model, checked",
    ),
    Route(
        Format.KERAS,
        Format.TENSORFLOW,
        "converters.tensorflow.from_keras:convert",
        ("tensorflow", "keras"),
        "SavedModel of what the Keras model infers",
    ),
    Route(
        Format.TENSORFLOW,
        Format.ONNX,
        "converters.tensorflow.to_onnx:convert",
        ("tensorflow", "tf2onnx", *_ONNX),
        "FP32 ONNX, opset 18",
    ),
    *(
        Route(Format.TENSORFLOW, target, f"converters.tensorflow.to_tflite:{convert}", _TFLITE, what, calibrates)
        for target, convert, what, calibrates in (
            (Format.TFLITE, "convert_float", "TFLite in FP32", False),
            (Format.TFLITE_FP16, "convert_fp16", "TFLite with FP16 weights: half the size", False),
            (Format.TFLITE_DYNAMIC, "convert_dynamic", "TFLite with INT8 weights, ranges at run time", False),
            (Format.TFLITE_INT8, "convert_int8", "TFLite in INT8 throughout", True),
        )
    ),
    Route(
        Format.TFLITE_FILE,
        Format.TFLITE,
        "converters.tensorflow.source:convert_tflite",
        ("ai_edge_litert",),
        "the same model, checked",
    ),
    *(
        Route(
            source,
            target,
            f"converters.tensorrt.engine:{convert}",
            _ONNX,
            what.format(kind),
            builders=(module,),
        )
        for convert, module, what, targets_made in (
            (
                "convert",
                "tensorrt",
                "TensorRT 11 engine in {}, for one kind of GPU",
                (
                    Format.TENSORRT,
                    Format.TENSORRT_FP16,
                    Format.TENSORRT_BF16,
                    Format.TENSORRT_INT8,
                    Format.TENSORRT_FP8,
                ),
            ),
            (
                "convert_rtx",
                "tensorrt_rtx",
                "TensorRT-RTX engine in {}, built without a GPU",
                (
                    Format.TENSORRT_RTX,
                    Format.TENSORRT_RTX_FP16,
                    Format.TENSORRT_RTX_BF16,
                    Format.TENSORRT_RTX_INT8,
                    Format.TENSORRT_RTX_FP8,
                ),
            ),
        )
        for (source, kind), target in zip(_ENGINE_SOURCES, targets_made, strict=True)
    ),
)

# The extra of this package that brings a module; what every installation has is not listed.
EXTRA_OF = {
    **dict.fromkeys(("torch", "onnxscript", "safetensors"), "torch"),
    **dict.fromkeys(("sklearn", "skl2onnx", "onnxmltools", "skops", "xgboost", "lightgbm"), "classic"),
    **dict.fromkeys(("tensorflow", "keras", "tf2onnx", "ai_edge_litert"), "tensorflow"),
    "onnxruntime": "cpu",  # or gpu, in its place
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
}


def targets() -> tuple[Format, ...]:
    """What `--to` takes, in the table's order."""
    return tuple(dict.fromkeys(route.target for route in ROUTES if route.target not in SOURCES))


def target_format(name: str) -> Format:
    """The target called `name`. Raises: InvalidRequest."""
    for target in targets():
        if target.value == name:
            return target
    raise InvalidRequest(f"to: expected some of {', '.join(targets())}, got {name!r}")


def way(source: Format, target: Format, built_here: bool = False) -> tuple[Route, ...]:
    """The shortest chain of steps from `source` to `target`.

    Raises: ConversionFailed if there is none, or if a step of it needs a module that is not installed; with
        `built_here`, also one that the machine which serves could build with.
    """
    steps = shortest(source, target)
    missing = sorted({m for step in steps for m in (*step.missing, *(step.missing_builders if built_here else ()))})
    if missing:
        extras = sorted({EXTRA_OF[name] for name in missing if name in EXTRA_OF})
        hint = f" (pip install 'prism-serving[{','.join(extras)}]')" if extras else ""
        raise ConversionFailed(f"{source} to {target} needs {', '.join(missing)}, not installed{hint}")
    return steps


def shortest(source: Format, target: Format) -> tuple[Route, ...]:
    """The shortest chain of steps, installed or not. Raises: ConversionFailed if there is none."""
    queue: deque[tuple[Route, ...]] = deque((route,) for route in ROUTES if route.source == source)
    seen = {source}
    while queue:
        chain = queue.popleft()
        end = chain[-1].target
        if end == target:
            return chain
        if end not in seen:
            seen.add(end)
            queue.extend((*chain, route) for route in ROUTES if route.source == end)
    raise ConversionFailed(f"no conversion leads from {source} to {target}")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False
