"""TensorFlow on a GPU: the answers are the CPU's, a GPU that is asked for is used, and costs are measured there."""

import numpy as np
import onnx
import pytest
from gpu_machine import missing

from converters.build import convert
from converters.candidate import Options
from converters.runtime import can_use_gpu, open_runtime
from onnx_models import fixed_artifact, mlp_artifact, mlp_model, sample, two_input_artifact


def lacking() -> str:
    """Why TensorFlow's tests cannot run; "" if they can."""
    why = missing("tensorflow")
    if why:
        return why
    import tensorflow

    return "" if tensorflow.test.is_built_with_cuda() else "this TensorFlow is built without CUDA (tensorflow-cpu)"


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(lacking()), reason=lacking() or "all is there")]

# On GPUs since Ampere FP32 products are computed in TF32, with 11 significant bits.
NEAR = {"rtol": 1e-2, "atol": 1e-2}


@pytest.mark.parametrize("make", [mlp_artifact, two_input_artifact, fixed_artifact], ids=lambda make: make.__name__)
def test_a_saved_model_answers_on_the_gpu_as_on_the_cpu(make, tmp_path):
    from tf_models import in_tensorflow

    artifact = in_tensorflow(make)(tmp_path / "a")
    assert can_use_gpu("tensorflow")
    on_cpu, on_gpu = (open_runtime(artifact, accelerator=name) for name in ("cpu", "gpu"))
    for a, b in zip(on_cpu.run(sample(artifact)), on_gpu.run(sample(artifact)), strict=True):
        np.testing.assert_allclose(b, a, **NEAR)


def test_a_conversion_is_proved_and_measured_on_the_gpu(tmp_path):
    onnx.save(mlp_model(hidden=256), tmp_path / "m.onnx")
    loose = {"rel": 1e-2, "abs": 1e-2, "sqnr": 40.0}
    options = Options(device="gpu", max_rows=8, profile_s=0.5, tolerance=loose)
    (artifact,) = convert(tmp_path / "m.onnx", tmp_path / "out", ("tensorflow",), options)
    assert artifact.parity()["executed"] is True and artifact.parity()["passed"] is True
    assert artifact.cost_curve("gpu").rows == (1, 2, 4, 8)
    assert artifact.profile()["devices"]["gpu"]["gpu_bytes"] > 0  # it took memory there, so it computed there
