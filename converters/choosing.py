"""Which forms of a model `prism optimize` tries, and why it does not try the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.errors import ConversionFailed
from converters.candidate import Options
from converters.formats import Format
from converters.layers import Layers
from converters.table import targets, way


@dataclass(frozen=True, slots=True)
class Choice:
    """Targets to try, nearest to the source first, and for each other target why it is not tried."""

    tried: tuple[str, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Situation:
    """What decides: the model, the device, the data. `layers` is None where nothing is known of them."""

    source: Format
    layers: Layers | None
    gpu: bool
    calibrated: bool


def choose_targets(source: Format, layers: Layers | None, options: Options) -> Choice:
    """The forms that can be worth it for this model, device and data, and whose tools are installed."""
    found = Situation(source, layers, options.device != "cpu", options.calibrate is not None)
    left_out: dict[str, str] = {}
    tried = []
    for target in sorted(targets(), key=lambda target: _PRECISION.get(target, 0)):
        reason = _unsuited(target, found) or _out_of_reach(source, target)
        if reason:
            left_out[target.value] = reason
        else:
            tried.append(target.value)
    return Choice(tuple(tried), left_out)


def _unsuited(target: Format, found: Situation) -> str:
    return _RULES[target](found)


def _out_of_reach(source: Format, target: Format) -> str:
    try:
        way(source, target, built_here=True)  # what is not built here cannot be measured here
    except ConversionFailed as error:
        return error.message
    return ""


def _always(found: Situation) -> str:
    return ""


_UNCALIBRATED = "it needs calibration data (--calibrate data.npz)"
_ON_CPU_ONLY = "it is computed on CPUs"
_FOR_GPUS = "it is for GPUs (--device gpu)"


def _fp16(found: Situation) -> str:
    return "" if found.gpu else "FP16 is no faster on a CPU"


def _int8(found: Situation) -> str:
    if found.gpu:
        return "its unsigned INT8 is for CPUs"
    if found.layers == Layers(0, 0):
        return "the model has no convolution and no matrix product"
    return "" if found.calibrated else _UNCALIBRATED


def _int8_dynamic(found: Situation) -> str:
    if found.gpu:
        return "its ranges at run time are for CPUs"
    if found.layers is None or found.layers.products > found.layers.convolutions:
        return ""
    if not found.layers.products:
        return "the model has no matrix product with fixed weights"
    return "it quantises matrix products, and this model is made of convolutions"


def _int8_trt(found: Situation) -> str:
    if not found.gpu:
        return _FOR_GPUS
    return "" if found.calibrated else _UNCALIBRATED


def _for_engines(found: Situation) -> str:
    return "it is what an engine is built from, and computed by that" if found.gpu else _FOR_GPUS


def _tensorflow(found: Situation) -> str:
    return "" if found.source in _OF_TENSORFLOW else "the model does not come from TensorFlow"


def _tflite(found: Situation) -> str:
    if found.gpu:
        return _ON_CPU_ONLY
    if found.source == Format.TFLITE_FILE or found.layers is None or found.layers.convolutions:
        return ""
    return "the model has no convolutions, which TFLite is fast at"


def _tflite_int8(found: Situation) -> str:
    return _tflite(found) or ("" if found.calibrated else _UNCALIBRATED)


def _tflite_dynamic(found: Situation) -> str:
    return _tflite(found) or ("INT8 throughout is tried instead" if found.calibrated else "")


def _tflite_fp16(found: Situation) -> str:
    return _tflite(found) or "half the size, and computed as FP32 is"


def _engine(found: Situation) -> str:
    return "" if found.gpu else _FOR_GPUS


_OF_TENSORFLOW = (Format.SAVED_MODEL, Format.KERAS)

_RULES: dict[Format, Callable[[Situation], str]] = {
    **dict.fromkeys((Format.ONNX, Format.OPTIMIZED, Format.PYTORCH, Format.TORCHSCRIPT), _always),
    **dict.fromkeys((Format.BF16, Format.FP8_TRT), _for_engines),
    Format.FP16: _fp16,
    Format.INT8: _int8,
    Format.INT8_DYNAMIC: _int8_dynamic,
    Format.TENSORFLOW: _tensorflow,
    Format.TFLITE: _tflite,
    Format.TFLITE_FP16: _tflite_fp16,
    Format.TFLITE_DYNAMIC: _tflite_dynamic,
    Format.TFLITE_INT8: _tflite_int8,
    **dict.fromkeys((Format.TENSORRT, Format.TENSORRT_FP16, Format.TENSORRT_BF16), _engine),
    **dict.fromkeys((Format.TENSORRT_RTX, Format.TENSORRT_RTX_FP16, Format.TENSORRT_RTX_BF16), _engine),
    **dict.fromkeys((Format.INT8_TRT, Format.TENSORRT_INT8, Format.TENSORRT_FP8), _int8_trt),
    **dict.fromkeys((Format.TENSORRT_RTX_INT8, Format.TENSORRT_RTX_FP8), _int8_trt),
}

# Of equally fast forms the first is kept: FP32 before 16 bits before 8.
_PRECISION = {
    **dict.fromkeys((Format.FP16, Format.BF16, Format.TFLITE_FP16), 1),
    **dict.fromkeys(
        (Format.TENSORRT_FP16, Format.TENSORRT_BF16, Format.TENSORRT_RTX_FP16, Format.TENSORRT_RTX_BF16), 1
    ),
    **dict.fromkeys((Format.INT8, Format.INT8_DYNAMIC, Format.INT8_TRT, Format.FP8_TRT), 2),
    **dict.fromkeys((Format.TFLITE_INT8, Format.TFLITE_DYNAMIC), 2),
    **dict.fromkeys((Format.TENSORRT_INT8, Format.TENSORRT_FP8, Format.TENSORRT_RTX_INT8, Format.TENSORRT_RTX_FP8), 2),
}
