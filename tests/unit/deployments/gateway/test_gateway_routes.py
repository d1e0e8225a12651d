from dataclasses import replace

import pytest

from cluster.documents import DeploySettings, ModelDocument, VersionRecord, VersionStatus
from cluster.errors import ModelNotFound, ModelNotReady
from cluster.names import Target
from cluster.splits import TrafficSplit
from cluster.tensors import Signature, TensorSpec
from deployments.gateway.membership import Membership
from deployments.gateway.routes import RoutingTable

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), True, 8)


def record(version, deploy=DeploySettings()):
    return VersionRecord(version, "/a", "d" * 64, SIGNATURE, "onnx", "fp32", 10, 1.0, deploy=deploy)


class Client:
    def __init__(self, model, made):
        self.model, self.record = model, made
        self.connected, self.told = 0, []

    def give_up(self, error):
        self.told.append(error)


class Bench:
    def __init__(self):
        self.connected, self.disconnected = [], []
        self.table = RoutingTable(self.connect, lambda model, client: self.disconnected.append(client))

    def connect(self, model, made):
        client = Client(model, made)
        self.connected.append(client)
        return client


TWO = ModelDocument(
    "m", {"1": record("1"), "2": record("2"), "3": record("3", None)}, TrafficSplit.all_to("2"), {"old": "1"}
)


def test_a_request_goes_to_its_version_its_label_or_the_split():
    bench = Bench()
    bench.table.apply({"m": TWO})
    for text, version in (("m", "2"), ("m:1", "1"), ("m@old", "1")):
        assert bench.table.route(Target.parse(text), None).record.version == version


def test_what_is_not_there_is_said():
    bench = Bench()
    bench.table.apply({"m": TWO})
    for missing in ("other", "m:9", "m@none"):
        with pytest.raises(ModelNotFound):
            bench.table.route(Target.parse(missing), None)
    with pytest.raises(ModelNotReady, match="m:3 is not deployed"):
        bench.table.route(Target.parse("m:3"), None)


def test_only_deployed_versions_are_connected_and_each_once():
    bench = Bench()
    bench.table.apply({"m": TWO})
    bench.table.apply({"m": replace(TWO, split=TrafficSplit.all_to("1"))})
    assert [c.record.version for c in bench.connected] == ["1", "2"]
    assert bench.disconnected == []


def test_an_undeployed_version_is_disconnected_and_the_others_stay():
    bench = Bench()
    bench.table.apply({"m": TWO})
    bench.table.apply({"m": replace(TWO, versions={**TWO.versions, "1": record("1", None)}, labels={})})
    assert [c.record.version for c in bench.disconnected] == ["1"]
    assert list(bench.table.arms()) == [("m", "2")]


@pytest.mark.parametrize(
    ("changed", "connected", "told"),
    [
        ({}, 0, ["m:2 cannot be started: model.onnx: changed"]),
        ({}, 1, []),  # a replica answers all the same
        ({"state": "DEGRADED"}, 0, []),  # another replica may be on its way
        ({"digest": "e" * 64}, 0, []),  # that was another artifact
    ],
)
def test_what_waits_for_a_version_that_failed_is_told_why(changed, connected, told):
    bench = Bench()
    bench.table.apply({"m": TWO})
    client = bench.table.arm("m", "2")
    client.connected = connected
    failed = VersionStatus("2", "FAILED", "model.onnx: changed", ready_once=True, digest="d" * 64)
    bench.table.know({"m": {"2": replace(failed, **changed)}})
    assert [str(error) for error in client.told] == told and bench.table.arm("m", "1").told == []


def test_a_change_of_scale_keeps_the_client_and_a_change_of_batch_size_replaces_it():
    bench = Bench()
    bench.table.apply({"m": TWO})
    first = bench.table.arm("m", "2")
    scaled = record("2", DeploySettings(max_replicas=5))
    bench.table.apply({"m": TWO.with_record(scaled)})
    assert bench.table.arm("m", "2") is first and first.record == scaled
    bench.table.apply({"m": TWO.with_record(record("2", DeploySettings(max_batch_rows=4)))})
    assert bench.table.arm("m", "2") is not first and bench.disconnected == [first]


def test_a_removed_model_is_gone():
    bench = Bench()
    bench.table.apply({"m": TWO})
    bench.table.apply({})
    with pytest.raises(ModelNotFound):
        bench.table.route(Target("m"), None)
    assert len(bench.disconnected) == 2 and bench.table.models() == []


def test_a_listener_hears_the_present_list_first_and_then_every_other():
    membership, heard = Membership(), []
    membership.publish("app", {"a": {}})
    membership.listen("app", heard.append)
    membership.publish("app", {"b": {}})
    membership.publish("other", {"c": {}})
    membership.forget("app")
    membership.publish("app", {"d": {}})
    assert heard == [{"a": {}}, {"b": {}}]


def test_a_version_that_cannot_be_connected_harms_no_other_and_is_tried_again():
    bench = Bench()
    refused = {"1"}
    connect = bench.connect

    def picky(model, made):
        if made.version in refused:
            raise RuntimeError("no")
        return connect(model, made)

    bench.table = RoutingTable(picky, lambda model, client: None)
    bench.table.apply({"m": TWO})
    assert bench.table.behind and bench.table.route(Target("m"), None).record.version == "2"
    with pytest.raises(ModelNotReady):
        bench.table.route(Target.parse("m:1"), None)
    refused.clear()
    bench.table.apply({"m": TWO})
    assert not bench.table.behind and bench.table.route(Target.parse("m:1"), None).record.version == "1"
