"""SavedModel, TFLite and ONNX of one network as three versions of a model: the same answers through HTTP."""

import json
import urllib.request

import numpy as np
import pytest

from converters.runtime import open_runtime
from onnx_models import mlp_artifact

pytest.importorskip("tensorflow", reason="run in the environment that `make env-tensorflow` makes")
import tf_models

pytestmark = pytest.mark.integration


def test_every_form_of_a_network_is_served_with_its_in_process_answer(prism, tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    makers = (mlp_artifact, tf_models.in_tensorflow(mlp_artifact), tf_models.in_tflite(mlp_artifact))
    for version, make in enumerate(makers, 1):
        artifact = make(tmp_path / str(version))
        prism.cli("publish", "forms", str(artifact.path))
        prism.cli("deploy", f"forms:{version}", "--cpus", "0.1")
        sent = {"inputs": [{"name": "x", "shape": [5, 4], "datatype": "FP32", "data": x.ravel().tolist()}]}
        request = urllib.request.Request(
            prism.url(f"/v2/models/forms/versions/{version}/infer"), json.dumps(sent).encode()
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        got = np.array(answer["outputs"][0]["data"], np.float32).reshape(5, 3)
        np.testing.assert_allclose(got, open_runtime(artifact).run((x,))[0], rtol=1e-5, atol=1e-6)
        assert answer["model_version"] == str(version)
