"""What is decided around PyTorch's served forms: devices, compiled code, and what errors mean."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
from torch_models import frozen_script_artifact, script_artifact

from cluster.errors import ConversionFailed, EngineFailed, InvalidRequest
from cluster.tensors import Signature, TensorSpec
from converters.candidate import Candidate, Options
from converters.runtime import can_use_gpu, open_runtime
from converters.torch import choice as torch_choice
from converters.torch import compiled as torch_compiled
from converters.torch import script_runtime as torch_script_runtime
from converters.torch.choice import check_mode, choose, with_choice
from converters.torch.compiled import Sizes, own_folder
from converters.torch.runtime import AUTO, OFF, ON, TorchRuntime, device_of, failure_of, wants_compiled

CPU = torch.device("cpu")


def test_compiled_code_is_kept_only_where_it_is_quicker_by_a_margin_and_nowhere_slower():
    eager = {1: 1.0, 2: 2.0, 4: 4.0}
    assert choose(AUTO, eager, {1: 0.5, 2: 1.0, 4: 2.0}).kept
    assert not choose(AUTO, eager, {1: 0.95, 2: 1.9, 4: 3.8}).kept  # within what measurements differ by
    assert not choose(AUTO, eager, {1: 1.2, 2: 1.0, 4: 2.0}).kept  # slower for one row
    assert not choose(AUTO, eager, {}).kept
    assert "2.00 times as fast over 1 to 4 rows" in choose(AUTO, eager, {1: 0.5, 2: 1.0, 4: 2.0}).why


def test_what_was_asked_for_is_kept_though_it_does_not_pay_and_says_so():
    choice = choose(ON, {1: 1.0}, {1: 2.0})
    assert choice.kept and "it does not pay, and was asked for" in choice.why


def test_only_a_manifest_that_says_so_for_this_device_wants_compiled_code():
    assert wants_compiled({"compiled": {"cpu": {"kept": True, "asked": "auto"}}}, CPU) == AUTO
    assert wants_compiled({"compiled": {"cpu": {"kept": True, "asked": "on"}}}, CPU) == ON
    for extra in ({}, {"compiled": 3}, {"compiled": {"cpu": {"kept": False}}}, {"compiled": {"gpu": {"kept": True}}}):
        assert wants_compiled(extra, CPU) == OFF


def test_a_compiler_that_fails_is_an_error_only_where_compiled_code_was_asked_for(tmp_path):
    candidate = Candidate(tmp_path / "model.pt2", "fp32", {})

    def fails():
        raise ConversionFailed("no C++ compiler")

    noted = with_choice(candidate, ((), ()), Options(compiled="auto"), lambda _: None, fails)
    assert noted.extra["compiled"]["cpu"] == {"asked": "auto", "kept": False, "why": "no C++ compiler"}
    assert noted.notes == ("not compiled: no C++ compiler",)
    with pytest.raises(ConversionFailed, match="no C"):
        with_choice(candidate, ((), ()), Options(compiled="on"), lambda _: None, fails)
    assert with_choice(candidate, ((), ()), Options(), lambda _: None, fails) is candidate
    with pytest.raises(InvalidRequest, match="compiled: expected one of off, auto, on"):
        check_mode(Options(compiled="yes"))


def test_a_machine_without_a_compiler_says_which_one_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch_compiled.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "model.pt2").write_bytes(b"")
    with pytest.raises(ConversionFailed, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        torch_compiled.compile_ahead(tmp_path / "model.pt2", 1, CPU)


def test_a_replica_that_cannot_freeze_serves_the_script_unless_frozen_was_asked_for(tmp_path, monkeypatch, caplog):
    artifact = frozen_script_artifact(tmp_path / "asked")

    def fails(module):
        raise EngineFailed("it cannot be frozen")

    monkeypatch.setattr(torch_script_runtime, "frozen", fails)
    with pytest.raises(EngineFailed, match="cannot be frozen"):
        open_runtime(artifact)
    artifact.manifest.extra["compiled"]["cpu"]["asked"] = "auto"
    assert open_runtime(artifact)
    assert [record.getMessage() for record in caplog.records] == ["served as it is, not frozen: it cannot be frozen"]


def test_compiled_code_is_called_only_for_sizes_it_is_right_for():
    shared_rows, shared_length = ((0, 0), (1, 0)), ((0, 1), (1, 1))
    sizes = Sizes(fixed=((0, 2, 2), (1, 2, 2)), free=((shared_rows, 1, 8), (shared_length, 4, 9)))
    assert sizes.admit([(1, 4, 2), (1, 4, 2)]) and sizes.admit([(8, 9, 2), (8, 9, 2)])
    for shapes in (
        [(2, 5, 2), (2, 6, 2)],
        [(2, 5, 2), (3, 5, 2)],
        [(2, 5, 3), (2, 5, 3)],
        [(9, 5, 2), (9, 5, 2)],
        [(0, 5, 2), (0, 5, 2)],
        [(2, 3, 2), (2, 3, 2)],
    ):
        assert not sizes.admit(shapes)


@pytest.mark.parametrize("quick", [lambda tensors: None, lambda tensors: 1 / 0 if not tensors else torch._check(False)])
def test_what_compiled_code_does_not_answer_the_model_answers(quick):
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), True, 4)
    runtime = TorchRuntime(lambda tensors: tensors[0] + 1, signature, CPU, quick)
    assert runtime.compiled
    assert runtime.run((np.zeros(2, "f4"),))[0].tolist() == [1.0, 1.0]


def test_a_model_that_answers_with_other_types_than_it_stated_is_an_engine_failure():
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), True, 4)
    for answer in (lambda tensors: tensors[0].long(), lambda tensors: [tensors[0], tensors[0]]):
        with pytest.raises(EngineFailed, match=r"expected \['FP32'\], got"):
            TorchRuntime(answer, signature, CPU).run((np.zeros(2, "f4"),))


def test_a_folder_that_others_can_reach_is_not_used_for_compiled_code(tmp_path):
    mine = own_folder(tmp_path / "mine")
    assert mine.stat().st_mode & 0o777 == 0o700
    mine.chmod(0o755)
    with pytest.raises(EngineFailed, match="only this user"):
        own_folder(mine)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(EngineFailed, match="only this user"):
        own_folder(tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineFailed):
        own_folder(tmp_path / "file")


def test_old_compiled_code_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_compiled.tempfile, "gettempdir", lambda: str(tmp_path))
    torch_compiled.own_store()
    folder = tmp_path / f"prism-compiled-{os.getuid()}" / "derived"
    for name, age_s in (("old", 100_000), ("new", 10)):
        (folder / name).mkdir(parents=True)
        at_s = (folder / name).stat().st_mtime - age_s
        os.utime(folder / name, (at_s, at_s))
    torch_compiled.own_store()
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_errors_are_the_callers_the_devices_or_the_servers():
    script = "The following operation failed in the TorchScript interpreter.\nTraceback (most recent call last):\n"
    refused = failure_of(RuntimeError(script + '  File "a.py", line 3, in forward\nRuntimeError: index out of range'))
    assert isinstance(refused, InvalidRequest)
    assert refused.message == "the model refuses these inputs: index out of range"
    for error in (torch.OutOfMemoryError("no"), RuntimeError("CUDA error: device-side assert"), KeyError("x")):
        assert isinstance(failure_of(error), EngineFailed)


def test_a_gpu_that_pytorch_does_not_see_is_an_error_and_never_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineFailed, match="accelerator: expected gpu, but this PyTorch"):
        open_runtime(script_artifact(tmp_path / "a"), accelerator="gpu")
    assert device_of("auto") == device_of("cpu") == CPU
    assert not can_use_gpu("pytorch") and not can_use_gpu("torchscript")


def test_an_auto_replica_on_a_cpu_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runtime = open_runtime(script_artifact(tmp_path / "a"), accelerator="auto", threads=2)
    assert runtime.provider == "CPU" and torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_both_ways_are_measured_in_turn(tmp_path, monkeypatch):
    artifact = script_artifact(tmp_path / "a")
    plain = (artifact.path / "manifest.json").read_text()
    quick = re.sub(r'"kept": false', '"kept": true', plain)
    assert quick != plain
    found = torch_choice.measure_both(
        {"artifact": str(artifact.path), "manifests": [plain, quick], "threads": 1, "device": "cpu", "budget_s": 1.0}
    )
    assert set(found["eager"]) == set(found["quick"]) and 1 in found["eager"]
    assert min(*found["eager"].values(), *found["quick"].values(), found["eager_load_s"], found["quick_load_s"]) > 0
