"""What an archive or a folder from elsewhere may hold before a framework sees it."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from onnx import TensorProto, helper

from cluster.errors import ConversionFailed, EngineFailed, InvalidRequest
from cluster.tensors import ANY, TensorSpec
from converters import samples
from converters.candidate import Options
from converters.onnx import file as onnx_file
from converters.onnx.runtime import open_session
from converters.tensorflow import source as tensorflow_source
from converters.torch import script as torch_script
from onnx_models import mlp_model, model_of


def archive(path, members):
    with zipfile.ZipFile(path, "w") as made:
        for name, text in members.items():
            made.writestr(f"model/{name}", text)
    return path


def test_code_that_torch_finds_under_another_case_does_not_reach_it(tmp_path):
    members = {"CODE/__torch__.py": "torch.from_file(path)", "constants.pkl": pickle.dumps((), 2)}
    file = archive(tmp_path / "m.pt", {**members, "data.pkl": pickle.dumps({}, 2)})
    copy = io.BytesIO()
    torch_script.write_plain(file, copy)
    with zipfile.ZipFile(copy) as plain:
        assert sorted(plain.namelist()) == ["archive/constants.pkl", "archive/data.pkl"]


def test_an_archive_without_data_is_no_torchscript(tmp_path):
    with pytest.raises(ConversionFailed, match=r"it has no data\.pkl"):
        torch_script.write_plain(archive(tmp_path / "m.pt", {"constants.pkl": ""}), io.BytesIO())


def test_an_archive_that_says_itself_where_its_code_is_needs_trust(tmp_path):
    file = archive(tmp_path / "m.pt", {"model.json": "{}"})
    with pytest.raises(ConversionFailed, match=r"before 1\.4"):
        torch_script.load_script(file, trust_pickle=False)


def saved_model(folder):
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    return folder


def test_a_plain_folder_passes(tmp_path):
    tensorflow_source.check_folder(saved_model(tmp_path / "m"))


def test_a_linked_folder_is_not_copied_into_the_artifact(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    model = saved_model(tmp_path / "m")
    (model / "assets").symlink_to(tmp_path / "private")
    with pytest.raises(ConversionFailed, match="link out of its folder"):
        tensorflow_source.check_folder(model)


def test_a_folder_linked_to_itself_is_refused(tmp_path):
    model = saved_model(tmp_path / "m")
    (model / "assets").symlink_to(model)
    with pytest.raises(ConversionFailed, match="to a folder: assets"):
        tensorflow_source.check_folder(model)


def test_a_link_to_nothing_is_one_line(tmp_path):
    model = saved_model(tmp_path / "m")
    (model / "assets").symlink_to(model / "gone")
    with pytest.raises(ConversionFailed, match="assets is neither a file nor a folder"):
        tensorflow_source.check_folder(model)


def test_a_folder_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorflow_source, "MAX_MODEL_BYTES", 4)
    with pytest.raises(ConversionFailed, match="more than 4 bytes"):
        tensorflow_source.check_folder(saved_model(tmp_path / "m"))


def member(name, shape, content=b""):
    """An `.npz` whose one array says that it has `shape`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr(f"{name}.npy", header.getvalue() + content)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(1 << 60,), (1 << 40, 1 << 40), (10,), (1 << 33,)])
def test_data_that_says_it_is_larger_than_it_is_is_refused(tmp_path, shape):
    (tmp_path / "x.npz").write_bytes(member("x", shape, b"\0" * 8))
    with pytest.raises(InvalidRequest, match=r"sample: x\.npz is not an \.npz of plain arrays"):
        samples.read_npz(tmp_path / "x.npz", "sample")


def test_data_with_a_name_that_leads_elsewhere_is_a_name_only(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.npz").write_bytes(member("../../x", (2,), b"\0" * 8))
    assert list(samples.read_npz(tmp_path / "in" / "x.npz", "sample")) == ["../../x"]
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "x.npz"]


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_among_the_data_are_never_read(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([Trap(tmp_path / "sprung")], dtype=object))
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("x.npz", "y.npz"):
        with pytest.raises(InvalidRequest, match="is not an"):
            samples.read_npz(tmp_path / name, "sample")
    assert not (tmp_path / "sprung").exists()


def test_an_archive_of_the_oldest_kind_is_not_unpacked(tmp_path):
    torch_source = pytest.importorskip("converters.torch.source")
    with tarfile.open(tmp_path / "w.pth", "w") as made:
        for name in ("storages", "tensors", "pickle", "../../escaped"):
            info = tarfile.TarInfo(name)
            info.size = len(content := pickle.dumps(Trap(tmp_path / "sprung")))
            made.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        made.addfile(link)
    with pytest.raises(ConversionFailed, match=r"w\.pth: "):
        torch_source.load_module(tmp_path / "w.pth", Options())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["w.pth"]


def outside(location):
    """A model with its first tensor at `location`, and the same with the tensor in a node."""
    model, other = mlp_model(), mlp_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    del other.graph.initializer[0]
    other.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    return model, other


@pytest.mark.parametrize("location", ["../secret.bin", "{absolute}", "link.bin", "folder/secret.bin"])
def test_weights_outside_of_an_artifact_are_not_read_where_it_is_served(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "folder").symlink_to(tmp_path)
    for model in outside(location.format(absolute=tmp_path / "secret.bin")):
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(EngineFailed, match="ONNX Runtime cannot load it"):
            open_session(folder / "model.onnx")
        with pytest.raises(ConversionFailed, match=r"external data: .* the model's folder"):
            onnx_file.read(folder / "model.onnx")


def many_times(count, **stated):
    """A model that reads `count` tensors from one file, all of it or as `stated`."""
    model = mlp_model()
    first = model.graph.initializer[0]
    first.ClearField("raw_data")
    first.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **stated}.items():
        entry = first.external_data.add()
        entry.key, entry.value = key, value
    for i in range(count - 1):
        again = model.graph.initializer.add()
        again.CopyFrom(first)
        again.name = f"again{i}"
    return model


def test_a_file_that_is_read_many_times_counts_each_time(tmp_path, monkeypatch):
    (tmp_path / "w.bin").write_bytes(b"\0" * 4096)
    monkeypatch.setattr(onnx_file, "MAX_MODEL_BYTES", 100 * 4096 - 1)
    onnx_file.confine(many_times(99), tmp_path)
    onnx_file.confine(many_times(100, offset="96"), tmp_path)
    with pytest.raises(ConversionFailed, match="external data: 409600 bytes"):
        onnx_file.confine(many_times(100), tmp_path)


@pytest.mark.parametrize("stated", [{"offset": "-8"}, {"offset": "9999"}, {"length": "-1"}, {"offset": "1e3"}])
def test_external_data_lies_within_its_file(tmp_path, stated):
    (tmp_path / "w.bin").write_bytes(b"\0" * 4096)
    with pytest.raises(ConversionFailed, match="external data: 'w1' is said to be at"):
        onnx_file.confine(many_times(1, **stated), tmp_path)


X, Y = TensorSpec("x", "FP32", (ANY, 2)), TensorSpec("y", "FP32", (ANY, 2))
ONES = {name: np.ones(2, "f4") for name in ("scale", "bias", "mean", "variance")}


def in_training(*more):
    normal = helper.make_node("BatchNormalization", ["x", *ONES], ["n", "m", "v"], name="norm", training_mode=1)
    drop = helper.make_node("Dropout", ["n", "ratio", "training"], ["y"])
    constants = {**ONES, "ratio": np.array(0.5, "f4"), "training": np.array(True)}
    return model_of([normal, drop, *more], [X], [Y], constants)


def test_a_graph_in_training_mode_is_put_into_evaluation_mode_and_said_so(tmp_path):
    model = in_training()
    assert onnx_file.evaluate(model) == (
        "the source was in training mode (BatchNormalization, Dropout) and was put into evaluation mode",
    )
    onnx_file.check(onnx_file.save(model, tmp_path / "m.onnx"))
    x = np.array([[1.0, 2.0], [3.0, 4.0]], "f4")
    (y,) = open_session(tmp_path / "m.onnx").run(["y"], {"x": x})
    np.testing.assert_allclose(y, x, atol=1e-4)  # (x - 1) / sqrt(1 + epsilon) + 1
    assert onnx_file.evaluate(model) == ()


def test_a_graph_that_uses_what_only_training_has_is_refused():
    with pytest.raises(ConversionFailed, match="node 'norm': its running statistics are used"):
        onnx_file.evaluate(in_training(helper.make_node("Identity", ["m"], ["kept"])))
