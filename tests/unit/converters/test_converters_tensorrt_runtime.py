"""Engines at run time, on a stand-in for TensorRT's context and a device whose memory is numpy's."""

import contextlib
import types

import numpy as np
import onnxruntime as ort
import pytest
from trt_models import Engine

from cluster.errors import EngineFailed, InvalidRequest
from cluster.tensors import ANY, Signature, TensorSpec
from converters.tensorrt import runtime as tensorrt_runtime
from converters.tensorrt.runtime import TensorRtRuntime, module_of, specs_of
from onnx_models import mlp_artifact

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (ANY, 2)),), (TensorSpec("y", "FP32", (ANY, 2)),), batched=True, max_rows=4
)


class NumpyDevice:
    stream = 7

    def __init__(self):
        self.memory = {}

    def put(self, array):
        return self._keep(array.copy())

    def room(self, shape, dtype):
        return self._keep(np.zeros(shape, dtype))

    def get(self, kept):
        return kept

    def _keep(self, array):
        address = len(self.memory) + 100
        self.memory[address] = array
        return array, address


class Doubling:
    """A context of an engine y = 2 x for 1 to 4 rows."""

    def __init__(self, device, works=True, open_ended=False, refuses=""):
        self.device, self.works, self.open_ended, self.refuses = device, works, open_ended, refuses
        self.shape, self.addresses = (), {}

    def set_input_shape(self, name, shape):
        self.shape = shape
        return 1 <= shape[0] <= 4

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return name != self.refuses

    def get_tensor_shape(self, name):
        return (-1, 2) if self.open_ended else self.shape

    def execute_async_v3(self, stream):
        assert stream == 7
        memory = self.device.memory
        memory[self.addresses["y"]][:] = 2 * memory[self.addresses["x"]]
        return self.works


def opened(**changes):
    device = NumpyDevice()
    return TensorRtRuntime(Doubling(device, **changes), device, SIGNATURE)


def test_a_gpu_without_memory_for_an_engine_fails_its_start_not_its_first_request(tmp_path, monkeypatch):
    artifact = mlp_artifact(tmp_path / "a")
    engine = Engine(ort.InferenceSession(artifact.model_path, providers=["CPUExecutionProvider"]))
    assert tensorrt_runtime.opened(artifact, engine, NumpyDevice()).signature == artifact.manifest.signature
    monkeypatch.setattr(Engine, "create_execution_context", lambda self: None)
    with pytest.raises(EngineFailed, match="GPU memory"):
        tensorrt_runtime.opened(artifact, engine, NumpyDevice())


def test_an_engine_answers_what_lies_in_device_memory_after_it_ran():
    runtime = opened()
    for rows in (1, 3):
        x = np.arange(rows * 2, dtype="f4").reshape(rows, 2)
        (y,) = runtime.run((x,))
        np.testing.assert_array_equal(y, 2 * x)


def test_rows_outside_the_engines_ranges_are_the_callers_mistake():
    with pytest.raises(InvalidRequest, match=r"x of shape \[5, 2\] is outside the ranges"):
        opened().run((np.zeros((5, 2), "f4"),))


def test_an_engine_that_does_not_execute_is_an_engine_failure():
    with pytest.raises(EngineFailed, match="could not be executed"):
        opened(works=False).run((np.zeros((1, 2), "f4"),))
    with pytest.raises(EngineFailed, match="the shape of y depends on values"):
        opened(open_ended=True).run((np.zeros((1, 2), "f4"),))


@pytest.mark.parametrize("tensor", ["x", "y"])
def test_memory_that_the_engine_refuses_is_an_engine_failure_and_nothing_is_executed(tensor):
    runtime = opened(refuses=tensor, works=False)
    with pytest.raises(EngineFailed, match=f"refuses the memory for {tensor}"):
        runtime.run((np.zeros((1, 2), "f4"),))


def named(name):
    return types.SimpleNamespace(name=name)


def test_specs_come_from_the_engine_itself():
    kinds = {"ids": ("INPUT", "INT64", (-1, 8)), "y": ("OUTPUT", "HALF", (-1, 3))}
    engine = types.SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda i: list(kinds)[i],
        get_tensor_mode=lambda name: named(kinds[name][0]),
        get_tensor_dtype=lambda name: named(kinds[name][1]),
        get_tensor_shape=lambda name: kinds[name][2],
    )
    assert specs_of(engine) == ((TensorSpec("ids", "INT64", (ANY, 8)),), (TensorSpec("y", "FP16", (ANY, 3)),))
    kinds["y"] = ("OUTPUT", "FP8", (-1, 3))
    with pytest.raises(InvalidRequest, match=r"y: expected FLOAT, .*got FP8"):
        specs_of(engine)


def test_a_format_names_its_module():
    assert (module_of("tensorrt"), module_of("tensorrt-rtx")) == ("tensorrt", "tensorrt_rtx")


def test_a_gpu_without_memory_for_a_request_is_the_engines_failure(monkeypatch):
    torch = pytest.importorskip("torch")

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore about it")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", types.SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(EngineFailed, match="TensorRT: CUDA out of memory"):
        tensorrt_runtime.TorchDevice().room((2, 2), "<f4")
