"""A real Prism on a machine with a GPU: replicas share it, the next one waits, answers are the CPU's."""

import json
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from gpu_machine import marks, missing

from converters.runtime import open_runtime
from onnx_models import mlp_artifact
from running import Prism, free_port

pytestmark = [*marks(onnxruntime_gpu=True), pytest.mark.integration]

no_tensorrt = missing(onnxruntime_gpu=True, tensorrt_major=10)


@pytest.fixture(scope="module")
def prism():
    with tempfile.TemporaryDirectory(prefix="prism-gpu-") as folder:
        made = Prism(Path(folder) / "home", free_port())
        try:
            made.cli("up", "--http-port", str(made.port), "--grpc-port", str(free_port()))
            yield made
        finally:
            made.cli("down", check=False)


def version_of(prism, model):
    (found,) = prism.json("status", model)["models"]
    return found["versions"][0]


def check(prism, model, artifact):
    """Its answers over HTTP are those of the artifact on the CPU."""
    x = np.random.default_rng(2).standard_normal((4, 4)).astype("f4")
    body = {"inputs": [{"name": "x", "shape": [4, 4], "datatype": "FP32", "data": x.ravel().tolist()}]}
    request = urllib.request.Request(prism.url(f"/v2/models/{model}/infer"), json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as reply:
        (output,) = json.loads(reply.read())["outputs"]
    (expected,) = open_runtime(artifact).run((x,))
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected, rtol=1e-2, atol=1e-2)


def test_ray_counts_the_gpu_and_four_replicas_share_it(prism, tmp_path):
    artifact = mlp_artifact(tmp_path / "a")
    prism.cli("publish", "shared", str(artifact.path))
    share = ("--cpus", "0.1", "--gpus", "0.25", "--accelerator", "gpu")
    prism.cli("deploy", "shared:1", *share, "--min", "4", "--max", "5")
    version = version_of(prism, "shared")
    assert (version["replicas"], version["accelerator"]) == (4, "gpu")
    check(prism, "shared", artifact)
    (node,) = prism.json("status")["nodes"]["nodes"]
    if node["used"]["GPU"] == node["total"]["GPU"]:  # more GPUs have room for more
        prism.cli("scale", "shared:1", "--min", "5")
        prism.until(lambda: "GPUs free" in version_of(prism, "shared")["reason"], 60)
    prism.cli("undeploy", "shared:1", "--force")


def test_a_version_takes_the_gpu_by_itself_and_its_costs_are_measured_there(prism, tmp_path):
    artifact = mlp_artifact(tmp_path / "a", seed=1)
    prism.cli("publish", "auto", str(artifact.path))
    prism.cli("deploy", "auto:1", "--cpus", "0.1")
    assert version_of(prism, "auto")["accelerator"] == "gpu"
    check(prism, "auto", artifact)
    prism.cli("undeploy", "auto:1", "--force")


@pytest.mark.skipif(bool(no_tensorrt), reason=no_tensorrt or "there is")
def test_tensorrt_is_chosen_per_version_and_its_engine_kept_with_the_artifact(prism, tmp_path):
    artifact = mlp_artifact(tmp_path / "a", seed=2)
    prism.cli("publish", "trt", str(artifact.path))
    prism.cli("deploy", "trt:1", "--cpus", "0.1", "--provider", "tensorrt")
    check(prism, "trt", artifact)
    assert list(prism.home.rglob("*.engine"))
    prism.cli("undeploy", "trt:1", "--force")


@pytest.mark.skipif(not no_tensorrt, reason="there is TensorRT 10")
def test_tensorrt_that_is_not_there_fails_the_version_with_the_reason(prism, tmp_path):
    prism.cli("publish", "without", str(mlp_artifact(tmp_path / "a", seed=3).path))
    done = prism.cli("deploy", "without:1", "--cpus", "0.1", "--provider", "tensorrt", check=False)
    assert done.returncode == 1 and "TensorRT" in done.stderr
