"""What an archive or a folder from elsewhere may hold before a framework sees it."""

from __future__ import annotations

import io
import pickle
import zipfile

import pytest

from cluster.errors import ConversionFailed
from converters import tensorflow_source, torch_script


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
