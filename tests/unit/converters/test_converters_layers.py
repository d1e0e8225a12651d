"""What can be seen of a model in its file."""

import json
import struct
import zipfile

import numpy as np
import onnx
import pytest
from onnx import helper

from cluster.tensors import ANY, TensorSpec
from converters.formats import Format
from converters.layers import Layers, layers_of
from onnx_models import mlp_model, model_of


def test_an_onnx_files_products_count_where_weights_are_fixed(tmp_path):
    onnx.save(mlp_model(), tmp_path / "mlp.onnx")
    assert layers_of(tmp_path / "mlp.onnx", Format.ONNX_FILE) == Layers(0, 2)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("MatMul", ["c", "c"], ["y"]),  # no weights
    ]
    x, y = TensorSpec("x", "FP32", (ANY, 1, 4, 4)), TensorSpec("y", "FP32", (ANY, 1, 4, 4))
    onnx.save(model_of(nodes, [x], [y], {"w": np.ones((1, 1, 1, 1), "f4")}), tmp_path / "conv.onnx")
    assert layers_of(tmp_path / "conv.onnx", Format.ONNX_FILE) == Layers(1, 0)


def test_weights_tell_by_their_dimensions(tmp_path):
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "stem.weight": {"dtype": "F32", "shape": [8, 3, 3, 3], "data_offsets": [0, 864]},
            "stem.bias": {"dtype": "F32", "shape": [8], "data_offsets": [864, 896]},
            "head.weight": {"dtype": "F32", "shape": [10, 8], "data_offsets": [896, 1216]},
        }
    ).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(1216))
    assert layers_of(tmp_path / "m.safetensors", Format.TORCH) == Layers(1, 1)


def test_checkpoints_programs_and_keras_files_are_read_without_being_run(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "m.pth")
    assert layers_of(tmp_path / "m.pth", Format.TORCH) == Layers(1, 1)
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 4, 4),)), tmp_path / "m.pt2")
    assert layers_of(tmp_path / "m.pt2", Format.PT2) == Layers(1, 1)
    layers = [{"class_name": name, "config": {}} for name in ("InputLayer", "Conv2D", "DepthwiseConv2D", "Dense")]
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Functional", "config": {"layers": layers}}))
    assert layers_of(tmp_path / "m.keras", Format.KERAS) == Layers(2, 1)


def test_a_saved_models_nodes_are_counted_and_their_names_are_not(tmp_path):
    def op(name):
        return bytes((0x12, len(name))) + name.encode()

    node = b"\x0a\x06Conv2D" + op("MatMul")  # called Conv2D, and a product all the same
    (tmp_path / "saved_model.pb").write_bytes(node + op("MatMul") + op("DepthwiseConv2dNative"))
    assert layers_of(tmp_path, Format.SAVED_MODEL) == Layers(1, 2)


def test_nothing_is_known_of_damaged_files_and_of_pickles(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 40)
    (tmp_path / "m.safetensors").write_bytes(b"\x00" * 3)
    assert layers_of(tmp_path / "m.onnx", Format.ONNX_FILE) is None
    assert layers_of(tmp_path / "m.safetensors", Format.TORCH) is None
    assert layers_of(tmp_path / "m.pkl", Format.SKLEARN) is None
