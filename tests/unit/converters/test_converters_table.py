"""The table of conversions, and what a file is taken for."""

import subprocess
import sys
from importlib import import_module

import pytest

from cluster.errors import ConversionFailed, InvalidRequest
from converters import table
from converters.formats import SOURCES, TARGETS, Format, source_format, target_format
from converters.table import CONVERTERS, NEEDS, routes, shortest, way


def test_every_source_leads_to_every_target():
    for source in SOURCES:
        for target in TARGETS:
            assert shortest(source, target)[-1][1] == target


def test_int8_from_torch_goes_through_onnx():
    assert shortest(Format.TORCH, Format.INT8) == ((Format.TORCH, Format.ONNX), (Format.ONNX, Format.INT8))


def test_no_way_back_to_torch():
    with pytest.raises(ConversionFailed, match="no conversion leads from onnx to torch"):
        shortest(Format.ONNX, Format.TORCH)


def test_every_entry_names_a_function_that_exists():
    assert set(CONVERTERS) == set(NEEDS)
    for entry in CONVERTERS.values():
        module, name = entry.split(":")
        assert callable(getattr(import_module(module), name))


def test_a_step_that_needs_what_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(table.NEEDS, (Format.PT2, Format.ONNX), ("no_such_module_here", "onnx"))
    monkeypatch.setitem(table.EXTRA_OF, "no_such_module_here", "torch")
    with pytest.raises(ConversionFailed, match=r"needs no_such_module_here, not installed .*prism-serving\[torch\]"):
        way(Format.PT2, Format.INT8)
    assert {r.missing for r in routes() if r.source == Format.PT2} == {("no_such_module_here",)}


def test_the_table_and_the_runtime_load_no_framework():
    code = (
        "import sys, converters.table, converters.runtime, converters.onnx_runtime, cluster.cli.convert\n"
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
