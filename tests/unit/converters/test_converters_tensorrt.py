"""Engines: which shapes they are built for, and what is said when a build fails. The builder here is a stand-in."""

import types

import numpy as np
import pytest

from cluster.errors import ConversionFailed
from cluster.tensors import ANY, TensorSpec
from converters.candidate import Case
from converters.ranges import AxisRange
from converters.tensorrt.engine import build_plan, profile_of, refuse_outside

IDS = TensorSpec("ids", "INT64", (ANY, ANY))


def test_rows_go_from_one_to_the_most_and_other_axes_by_their_range():
    image = TensorSpec("image", "FP32", (ANY, 3, 8, 8))
    found = profile_of([image, IDS], 32, [AxisRange("ids", 1, 4, 128)])
    assert found["image"] == ([1, 3, 8, 8], [32, 3, 8, 8], [32, 3, 8, 8])
    assert found["ids"] == ([1, 4], [32, 16], [32, 128])


def test_a_fixed_input_needs_no_shapes():
    assert profile_of([TensorSpec("x", "FP32", (2, 3))], 1, []) == {}


def test_a_free_axis_without_a_range_is_named():
    with pytest.raises(ConversionFailed, match=r"--dynamic ids:1=MIN\.\.MAX"):
        profile_of([IDS], 8, [])


def test_data_that_the_engine_would_refuse_is_refused_when_it_is_made():
    profile = profile_of([IDS], 8, [AxisRange("ids", 1, 4, 128)])
    refuse_outside([Case("sample", 20, {"ids": np.zeros((20, 128), "i8")})], profile)
    with pytest.raises(ConversionFailed, match=r"sample: ids of shape \[2, 129\] is outside of --dynamic ids:1=4\.\."):
        refuse_outside([Case("sample", 2, {"ids": np.zeros((2, 129), "i8")})], profile)
    refuse_outside([Case("sample", 2, {"x": np.zeros((2, 3))})], profile_of([TensorSpec("x", "FP32", (2, 3))], 1, []))


def fake(version="11.4.0", name="tensorrt", parses=True, plan=b"plan", errors=("Unknown op Foo",), accepts=True):
    """What `build_plan` uses of TensorRT's Python interface; `calls` records it."""
    calls = {}

    class Logger:
        Severity = types.SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class Profile:
        def set_shape(self, *shape):
            calls.setdefault("shapes", []).append(shape)

    class Config:
        def add_optimization_profile(self, profile):
            return 0 if accepts else -1

        def create_timing_cache(self, content):
            calls["cache"] = content
            return content

        def set_timing_cache(self, cache, ignore):
            pass

        def set_memory_pool_limit(self, pool, size):
            calls[pool] = size

        def get_timing_cache(self):
            return types.SimpleNamespace(serialize=lambda: b"learned")

    class Builder:
        def __init__(self, log):
            self.log = log

        def create_network(self, flags):
            calls["flags"] = flags
            return object()

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            self.log.log(2, "a warning")
            if plan is None:
                self.log.log(1, "no kernel\n  for node 3")
            return plan

    class Parser:
        num_errors = len(errors)

        def __init__(self, network, log):
            pass

        def parse_from_file(self, path):
            return parses

        def get_error(self, i):
            return types.SimpleNamespace(desc=lambda: errors[i])

    module = types.SimpleNamespace(
        __name__=name,
        __version__=version,
        ILogger=Logger,
        Builder=Builder,
        OnnxParser=Parser,
        MemoryPoolType=types.SimpleNamespace(WORKSPACE="workspace"),
        NetworkDefinitionCreationFlag=types.SimpleNamespace(STRONGLY_TYPED=3),
    )
    return module, calls


def test_a_strongly_typed_network_is_built_with_the_shapes_and_the_cache(tmp_path):
    trt, calls = fake()
    plan, cache = build_plan(trt, tmp_path / "m.onnx", {"ids": ([1, 4], [8, 16], [8, 128])}, b"earlier")
    assert (plan, cache) == (b"plan", b"learned")
    assert calls == {"flags": 1 << 3, "shapes": [("ids", [1, 4], [8, 16], [8, 128])], "cache": b"earlier"}


def test_a_bound_of_memory_is_the_builders_too(tmp_path):
    trt, calls = fake()
    build_plan(trt, tmp_path / "m.onnx", {}, b"", workspace_bytes=1 << 30)
    assert calls["workspace"] == 1 << 30
    trt, calls = fake()
    build_plan(trt, tmp_path / "m.onnx", {}, b"")
    assert "workspace" not in calls


def test_an_older_tensorrt_is_refused(tmp_path):
    with pytest.raises(ConversionFailed, match=r"expected version 11 or newer, got 10\.13"):
        build_plan(fake(version="10.13.2")[0], tmp_path / "m.onnx", {}, b"")
    assert build_plan(fake(version="1.7.1", name="tensorrt_rtx")[0], tmp_path / "m.onnx", {}, b"")[0] == b"plan"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parses": False}, "cannot read this model: Unknown op Foo"),
        ({"plan": None}, "cannot build this model: no kernel for node 3"),
        ({"accepts": False}, "refuses the ranges"),
    ],
)
def test_what_tensorrt_says_is_passed_on(tmp_path, changes, said):
    with pytest.raises(ConversionFailed, match=said):
        build_plan(fake(**changes)[0], tmp_path / "m.onnx", {"x": ([1], [2], [3])}, b"")
