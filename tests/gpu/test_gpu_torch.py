"""PyTorch's served forms on a GPU: the answers are the CPU's, compiled or not, and a GPU that is asked for is used."""

import shutil
from importlib.util import find_spec

import numpy as np
import pytest

from converters.build import convert
from converters.candidate import Options
from converters.proof.comparison import compare_artifacts
from converters.runtime import can_use_gpu, open_runtime


def gpu_is_missing() -> str:
    """Why there is no GPU to test on; "" if there is one."""
    if find_spec("torch") is None:
        return "torch, which finds CUDA devices, is not installed"
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device"


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(gpu_is_missing()), reason=gpu_is_missing() or "there is a GPU")]


def rows(count):
    return (np.random.default_rng(0).integers(-8, 8, (count, 4)).astype("f4"),)


@pytest.mark.parametrize("maker", ["program_artifact", "script_artifact", "frozen_script_artifact"])
def test_a_gpu_answers_as_the_cpu_does(maker, tmp_path):
    import torch_models

    artifact = getattr(torch_models, maker)(tmp_path / "a")
    assert can_use_gpu(artifact.manifest.format)
    on_gpu = open_runtime(artifact, accelerator="gpu")
    assert on_gpu.provider == "CUDA" and open_runtime(artifact, accelerator="auto").provider == "CUDA"
    for count in (1, 5, 16):
        for a, b in zip(on_gpu.run(rows(count)), open_runtime(artifact).run(rows(count)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_a_program_is_compared_as_pytorch_runs_it_on_the_gpu(tmp_path):
    import torch_models

    artifact = torch_models.program_artifact(tmp_path / "p")
    shutil.copyfile(artifact.model_path, tmp_path / "net.pt2")
    told = []
    options = Options(device="gpu", max_rows=8, profile_s=0.5)
    found = compare_artifacts(artifact.path, tmp_path / "net.pt2", options, told.append)
    assert found.failures == () and "net.pt2 is run as pytorch" in told


@pytest.mark.parametrize("target", ["pytorch", "torchscript"])
def test_a_form_is_proved_on_the_gpu_with_compiled_code(target, tmp_path):
    import torch
    import torch_models

    source = torch_models.program_artifact(tmp_path / "p").model_path
    options = Options(device="gpu", compiled="on", max_rows=8, profile_s=0.5)
    if target == "torchscript":
        torch.jit.script(torch_models.Scores().eval()).save(str(tmp_path / "s.pt"))
        source = tmp_path / "s.pt"
        options = Options(device="gpu", compiled="on", max_rows=8, profile_s=0.5, inputs=("x:FP32:N,4",))
    (artifact,) = convert(source, tmp_path / "out", (target,), options)
    assert artifact.parity()["passed"] and artifact.manifest.extra["compiled"]["gpu"]["kept"]
    assert artifact.cost_curve("gpu").rows == (1, 2, 4, 8)
    if target == "pytorch":
        assert open_runtime(artifact, accelerator="gpu").compiled
