"""Which forms are worth a try: by the model, the device, the data and what is installed."""

from pathlib import Path

import pytest

from converters import table
from converters.candidate import Options
from converters.choosing import choose_targets
from converters.formats import Format
from converters.layers import Layers
from converters.table import ROUTES, targets

CNN, TRANSFORMER, TREES = Layers(50, 1), Layers(0, 40), Layers(0, 0)
CPU, CALIBRATED = Options(), Options(calibrate=Path("rows.npz"))
GPU = Options(device="gpu", calibrate=Path("rows.npz"))


@pytest.fixture(autouse=True)
def everything_is_installed(monkeypatch):
    monkeypatch.setattr(table, "_installed", lambda module: True)


def tried(source, layers, options):
    return choose_targets(source, layers, options).tried


def test_a_convolutional_network_on_a_cpu_is_tried_in_int8_and_as_tflite():
    assert tried(Format.ONNX_FILE, CNN, CALIBRATED) == ("onnx", "optimized", "tflite", "int8", "tflite-int8")
    assert tried(Format.ONNX_FILE, CNN, CPU) == ("onnx", "optimized", "tflite", "tflite-dynamic")


def test_a_transformer_on_a_cpu_is_tried_with_dynamic_ranges_and_not_as_tflite():
    assert tried(Format.ONNX_FILE, TRANSFORMER, CPU) == ("onnx", "optimized", "int8-dynamic")


def test_sources_are_tried_in_their_own_framework_too():
    assert "pytorch" in tried(Format.TORCH, TRANSFORMER, CPU) and "pytorch" in tried(Format.PT2, None, CPU)
    assert "tensorflow" in tried(Format.KERAS, CNN, CPU) and "tensorflow" not in tried(Format.TORCH, CNN, CPU)
    assert tried(Format.TFLITE_FILE, None, CPU) == ("tflite",)


def test_on_a_gpu_engines_and_half_precision_are_tried_and_cpu_forms_are_not():
    found = tried(Format.TORCH, CNN, GPU)
    assert {"onnx", "pytorch", "fp16", "tensorrt", "tensorrt-fp16", "tensorrt-int8", "tensorrt-rtx-int8"} <= set(found)
    assert not {"int8", "int8-dynamic", "bf16", "tflite", "tensorflow"} & set(found)
    assert found.index("onnx") < found.index("fp16") < found.index("tensorrt-int8")


@pytest.mark.parametrize("options", [CPU, CALIBRATED, GPU])
@pytest.mark.parametrize("layers", [CNN, TRANSFORMER, TREES, None])
@pytest.mark.parametrize("source", sorted({route.source for route in ROUTES} & {*Format}))
def test_every_target_is_tried_or_said_why_not(source, layers, options):
    found = choose_targets(source, layers, options)
    assert {*found.tried, *found.left_out} == {target.value for target in targets()}
    assert not set(found.tried) & set(found.left_out) and all(found.left_out.values())


def test_the_reasons_name_what_would_help():
    found = choose_targets(Format.LIGHTGBM, TREES, CPU).left_out
    assert "no convolution and no matrix product" in found["int8"] and "--device gpu" in found["tensorrt"]
    assert "--calibrate" in choose_targets(Format.ONNX_FILE, CNN, CPU).left_out["int8"]
    assert "no conversion leads from lightgbm to pytorch" in found["pytorch"]


def test_what_is_not_installed_is_left_out_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(table, "_installed", lambda module: module != "tensorrt")
    found = choose_targets(Format.ONNX_FILE, CNN, GPU)
    assert "prism-serving[tensorrt]" in found.left_out["tensorrt"] and "fp16" in found.tried
    assert "tensorrt-rtx" in found.tried
