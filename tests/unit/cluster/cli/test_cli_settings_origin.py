"""Where the settings of a deployed version came from, as `prism deploy` says it."""

from dataclasses import replace

from cluster.cli.settings_origin import described, origins, to_json
from cluster.documents import DeploySettings, VersionRecord
from cluster.tensors import ANY, Signature, TensorSpec

SPEC = TensorSpec("x", "FP32", (ANY, 2))
RECORD = VersionRecord(
    "1", "/a", "d" * 64, Signature((SPEC,), (SPEC,), batched=True, max_rows=8), "onnx", "fp32", 10, 1.0,
    serving={"num_cpus": 2, "max_batch_rows": 16},
)  # fmt: skip


def deployed(**settings):
    return replace(RECORD, deploy=DeploySettings(**settings))


def test_a_first_deploy_has_its_settings_from_options_the_artifact_and_the_defaults():
    found = origins(RECORD, deployed(num_cpus=1, max_batch_rows=16, max_replicas=4), {"num_cpus": 1, "max_replicas": 4})
    by_name = {s.name: s.origin for s in found}
    assert by_name["num_cpus"] == by_name["max_replicas"] == "option"
    assert by_name["max_batch_rows"] == "artifact" and by_name["max_wait_s"] == "default"
    assert described(found) == (
        "max_replicas 4 (option), num_cpus 1 (option; the artifact asks for 2), max_batch_rows 16 (artifact)"
    )
    assert to_json(found)["num_cpus"] == {"value": 1, "from": "option", "artifact": 2}
    assert "attempt" not in by_name


def test_what_was_deployed_otherwise_stays_and_the_artifacts_wish_is_shown():
    before = deployed(num_cpus=4)
    found = origins(before, replace(before, deploy=replace(before.deploy, max_replicas=2)), {"max_replicas": 2})
    assert described(found) == (
        "max_replicas 2 (option), num_cpus 4 (as before; the artifact asks for 2), "
        "max_batch_rows 0 (as before; the artifact asks for 16)"
    )


def test_nothing_is_said_of_defaults():
    plain = replace(RECORD, serving={}, deploy=DeploySettings())
    assert described(origins(None, plain, {})) == ""
