"""The table of conversions, and what a file is taken for."""

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from cluster.errors import ConversionFailed, InvalidRequest
from converters import table
from converters.build import convert
from converters.formats import SOURCES, Format, source_format
from converters.runtime import RUNTIMES
from converters.table import EXTRA_OF, ROUTES, Route, shortest, target_format, targets, way


def steps(source, target):
    return [(route.source, route.target) for route in shortest(source, target)]


def test_every_source_leads_to_every_target_made_of_onnx():
    for source in ({route.source for route in ROUTES} & set(SOURCES)) - {Format.TFLITE_FILE}:
        for target in (Format.ONNX, Format.INT8):
            assert steps(source, target)[-1][1] == target


def test_tensorflow_sources_reach_tflite_without_onnx_and_classical_ones_reach_onnx():
    for source in (Format.SAVED_MODEL, Format.KERAS):
        assert steps(source, Format.TFLITE_INT8)[1:] == [(Format.TENSORFLOW, Format.TFLITE_INT8)]
    for source in (Format.SKLEARN, Format.XGBOOST, Format.LIGHTGBM):
        assert steps(source, Format.ONNX) == [(source, Format.ONNX)]
    assert steps(Format.TFLITE_FILE, Format.TFLITE) == [(Format.TFLITE_FILE, Format.TFLITE)]


def test_int8_from_torch_goes_through_onnx():
    assert steps(Format.TORCH, Format.INT8) == [(Format.TORCH, Format.ONNX), (Format.ONNX, Format.INT8)]


def test_no_two_routes_make_the_same_step():
    pairs = [(route.source, route.target) for route in ROUTES]
    assert len(set(pairs)) == len(pairs)


def test_no_way_back_to_torch():
    with pytest.raises(ConversionFailed, match="no conversion leads from onnx to torch"):
        shortest(Format.ONNX, Format.TORCH)


def test_every_entry_names_a_function_that_exists():
    runtimes = [(name, entry.needs) for entry in RUNTIMES.values() for name in (entry.open, entry.describe)]
    for entry, needs in [*((route.convert, route.needs) for route in ROUTES), *runtimes]:
        module, name = entry.split(":")
        assert find_spec(module) is not None
        if all(find_spec(needed) for needed in needs):
            assert callable(getattr(import_module(module), name))


def test_a_step_that_needs_what_is_not_installed_names_the_extra(monkeypatch):
    lacking = Route(Format.PT2, Format.INT8, "nowhere:convert", ("no_such_module_here", "no.such", "onnx"), "nothing")
    monkeypatch.setattr(table, "ROUTES", (lacking,))
    monkeypatch.setitem(EXTRA_OF, "no_such_module_here", "torch")
    with pytest.raises(ConversionFailed, match=r"needs no\.such, no_such_module_here, .*prism-serving\[torch\]"):
        way(Format.PT2, Format.INT8)


def test_a_target_is_what_no_source_is():
    assert Format.ONNX in targets()
    assert not set(targets()) & set(SOURCES)


def test_the_table_and_the_runtime_load_no_framework():
    code = (
        "import sys, converters.table, converters.runtime, converters.onnx.runtime, cluster.cli.convert\n"
        "print([name for name in ('torch', 'onnx', 'tensorflow', 'ray', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_source_is_known_by_its_suffix(tmp_path):
    for name, expected in {"a.safetensors": Format.TORCH, "a.PTH": Format.TORCH, "a.pt2": Format.PT2}.items():
        (tmp_path / name).touch()
        assert source_format(tmp_path / name) == expected


def test_unknown_sources_and_targets_are_named(tmp_path):
    (tmp_path / "a.h5").touch()
    with pytest.raises(InvalidRequest, match=r"got 'a\.h5'"):
        source_format(tmp_path / "a.h5")
    with pytest.raises(InvalidRequest, match="a folder"):
        source_format(tmp_path)
    with pytest.raises(InvalidRequest, match="not there"):
        source_format(tmp_path / "b.onnx")
    with pytest.raises(InvalidRequest, match="got 'gguf'"):
        target_format("gguf")
    with pytest.raises(InvalidRequest, match="got 'torch'"):
        target_format("torch")


def test_a_builder_that_is_missing_is_told_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_installed", lambda module: module != "tensorrt")
    source = tmp_path / "m.onnx"
    source.touch()
    told: list[str] = []
    with pytest.raises(ConversionFailed, match=r"needs tensorrt, not installed .*; --engine on-load leaves the engine"):
        convert(source, tmp_path / "out", ["onnx", "tensorrt"], say=told.append)
    assert told == []
    assert list(tmp_path.iterdir()) == [source]
