import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster import changes
from cluster.artifact import Artifact
from cluster.cli.oip_client import Answer, decode
from cluster.documents import DeploySettings, ModelDocument, VersionStatus
from cluster.errors import InvalidRequest, ModelNotFound, OperatorError
from cluster.settings import Boot, RaySettings, Settings, StoreSettings
from cluster.splits import TrafficSplit
from cluster.store.memory import MemoryStore
from cluster.tensors import ANY, Signature, TensorSpec
from loadtest.baseline import check, check_answer
from loadtest.bench.servers.oip_model import read_model
from loadtest.calls import calls_for, signature_metadata
from loadtest.home_artifacts import check_same, needs_sample, served, split_versions, with_samples
from loadtest.scenario import LoadTarget, scenario_from
from loadtest.server_facts import home_facts, server_facts
from onnx_models import mlp_artifact, two_input_artifact

RAW = {"rate": 5, "phases": [{"duration_s": 10}], "objective": "p99<1s"}


def scenario(*targets, **more):
    return scenario_from({**RAW, "targets": list(targets), **more}, "test", Path("."))


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (scenario({"model": "m", "keys": {"kind": "zipf"}}), "keys"),
        (scenario({"model": "a"}, {"model": "b"}), r"several models \(a, b\)"),
        (scenario({"model": "m:1"}, {"model": "m:2"}), r"several versions \(m:1, m:2\)"),
        (scenario({"model": "m"}, events=[{"at_s": 1, "action": "kill-store"}]), "events"),
    ],
)
def test_what_plain_ray_serve_does_not_have_is_refused_in_one_line(made, what):
    with pytest.raises(InvalidRequest, match=f"baseline: test has {what}, which plain Ray Serve has not"):
        check(made, "ray-serve")


def test_one_model_asked_in_several_ways_is_fine():
    check(scenario({"model": "m"}, {"model": "m", "encoding": "json"}), "ray-serve")
    with pytest.raises(InvalidRequest, match="baseline: expected one of ray-serve"):
        check(scenario({"model": "m"}), "torchserve")


def answer(**outputs):
    return Answer("m", "1", outputs)


def test_answers_may_differ_by_rounding_and_no_more():
    want = answer(y=np.array([[1.0, 100.0]]))
    check_answer("b", answer(y=np.array([[1.05, 100.0]])), want)
    for wrong in (answer(y=np.array([[1.2, 100.0]])), answer(y=np.array([1.0, 100.0])), answer(z=np.zeros(2))):
        with pytest.raises(OperatorError, match="b answers"):
            check_answer("b", wrong, want)
    text = answer(u=np.array([b"a", b"b"], dtype=object))
    check_answer("b", text, text)
    with pytest.raises(OperatorError, match="output 'u' differs"):
        check_answer("b", answer(u=np.array([b"a", b"c"], dtype=object)), text)


@pytest.mark.parametrize("encoding", ["json", "binary", "raw"])
def test_the_plain_model_reads_and_writes_every_encoding(tmp_path, encoding):
    artifact = mlp_artifact(tmp_path / "a")
    metadata = signature_metadata(artifact.manifest.signature)
    target = LoadTarget(model="m", encoding=encoding, rows=2, variants=3)
    model = read_model(str(artifact.path))
    asked = [
        model.read(call.body, {name.lower(): value for name, value in call.headers.items()})
        for call in calls_for(target, lambda path: metadata, seed=1)
    ]
    together, alone = model.run(asked), [model.run([one])[0] for one in asked]
    for one, shared, own in zip(asked, together, alone, strict=True):
        assert one.rows == 2 and shared["y"].shape == (2, 3)
        assert np.allclose(shared["y"], own["y"], atol=1e-6)
        body, headers = model.write(one, shared)
        length = headers.get("Inference-Header-Content-Length")
        read = decode(body, int(length) if length else None)
        assert np.allclose(read.outputs["y"], own["y"], atol=1e-6)
        assert (length is None) == (encoding == "json")


def test_requests_of_different_shapes_in_one_batch_each_get_their_own_answer(tmp_path):
    model = read_model(str(two_input_artifact(tmp_path / "a").path))
    asked = []
    for width in (2, 3, 2):
        request = {
            "inputs": [
                {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [0, width]},
                {"name": "b", "datatype": "INT64", "shape": [1, width], "data": [1] * width},
            ]
        }
        asked.append(model.read(json.dumps(request).encode(), {}))
    sums = [found["sum"].tolist() for found in model.run(asked)]
    assert sums == [[[2, 4]], [[3, 6]], [[2, 4]]]


class Folders:
    """Artifacts that lie where their records say."""

    def fetch(self, uri, digest):
        return Path(uri)


def store_with(folder, split, labels=None):
    """Model m in two versions: 1 takes two inputs with a free dimension, 2 is `mlp_artifact`."""
    document = ModelDocument("m")
    for artifact in (two_input_artifact(folder / "1"), mlp_artifact(folder / "2")):
        record = changes.version_record(artifact, str(artifact.path), 1, by="t", created_s=0.0)
        document = changes.published(document, record)
    versions = {v: replace(r, deploy=DeploySettings(max_batch_rows=4)) for v, r in document.versions.items()}
    document = replace(document, versions=versions, split=TrafficSplit.parse(split), labels=labels or {})
    store = MemoryStore()
    store.swap(document, "test", "t")
    store.report("m", {"2": VersionStatus("2", "READY", replicas=3)})
    return store


def test_of_a_split_model_the_stable_version_is_what_a_baseline_serves(tmp_path):
    store = store_with(tmp_path, "1=10,2=90")
    assert served("m", store, Folders()).record.version == "2"
    assert served("m", store, Folders()).replicas == 3
    assert served("m:1", store, Folders()).folder == tmp_path / "1"
    labelled = store_with(tmp_path / "other", "1=10,2=90", {"stable": "1"})
    assert served("m", labelled, Folders()).record.version == "1"
    assert split_versions("m", store) == ("1", "2")
    assert split_versions("m:1", store) == ("1",)


def test_an_artifact_given_by_hand_has_to_be_the_one_that_is_served(tmp_path):
    found = served("m:2", store_with(tmp_path, "2=100"), Folders())
    check_same(Artifact.read(tmp_path / "2").digest, found, tmp_path / "2")
    with pytest.raises(InvalidRequest, match=r"artifact: .* is not what m:2 serves"):
        check_same(Artifact.read(tmp_path / "1").digest, found, tmp_path / "1")


def test_targets_whose_inputs_cannot_be_made_up_get_the_artifacts_sample(tmp_path):
    store = store_with(tmp_path, "2=100")
    made = scenario({"model": "m:1"}, {"model": "m:2"}, {"model": "m:1", "shapes": {"b": [4]}})
    found = [target.sample for target in with_samples(made, store, Folders()).targets]
    assert found == [str(tmp_path / "1" / "sample.npz"), "", ""]
    given = scenario({"model": "m:1", "sample": "own.npz"})
    assert with_samples(given, store, Folders()) == given


def test_only_text_and_free_dimensions_need_a_sample():
    def signature(dtype, shape, batched=True):
        specs = (TensorSpec("x", dtype, shape),)
        return Signature(specs, specs, batched, 8 if batched else 1)

    assert not needs_sample(signature("FP32", (ANY, 4)), {})
    assert needs_sample(signature("BYTES", (ANY, 1)), {})
    assert needs_sample(signature("INT64", (ANY, ANY)), {})
    assert not needs_sample(signature("INT64", (ANY, ANY)), {"x": [7]})


def test_what_a_result_says_of_the_server_holds_settings_and_no_secrets(tmp_path):
    settings = Settings(
        store=StoreSettings(url="redis://:hidden@h:1/0"), ray=RaySettings(fault_tolerance_url="redis://:hidden@h:2")
    )
    boot = Boot(
        home="h",
        run_dir="r",
        door="d",
        store_url="redis://:hidden@h:1/0",
        artifacts_url="a",
        ray_address="r:1",
        admin_token="token",
        wire_secret="wire",
        http_port=1,
        grpc_port=0,
        settings=settings,
    )
    found = home_facts(boot, store_with(tmp_path, "1=10,2=90"), ["m", "m"])
    assert found["models"]["m:2"]["share"] == 0.9 and found["models"]["m:2"]["max_batch_rows"] == 4
    assert found["models"]["m:2"]["state"] == "READY" and found["settings"]["http"]["max_connections"] == 4096
    text = json.dumps(found)
    assert all(secret not in text for secret in ("hidden", "token", "wire"))


def test_a_server_without_metadata_has_no_facts():
    def missing(path):
        raise ModelNotFound("nothing there")

    assert server_facts(missing) == {}
    assert server_facts(lambda path: {"name": "prism", "version": "1.2", "extensions": []}) == {
        "name": "prism",
        "version": "1.2",
    }
