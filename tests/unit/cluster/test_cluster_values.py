"""Names, tensor specs, costs, documents, settings."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.costs import CostCurve
from cluster.documents import (
    DeploySettings,
    ModelDocument,
    VersionRecord,
    VersionStatus,
    decode_document,
    decode_status,
    encode,
)
from cluster.errors import (
    Conflict,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    error_from_wire,
)
from cluster.names import Target, check_model
from cluster.settings import Boot, Settings, read_settings, settings_from
from cluster.splits import TrafficSplit
from cluster.tensors import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), batched=True, max_rows=8
)


def record(version="1", **changes):
    return replace(
        VersionRecord(version, "/a", "d" * 64, SIGNATURE, "onnx", "fp32", 10, 1.0, deploy=DeploySettings()), **changes
    )


@pytest.mark.parametrize("text", ["m", "m:3", "m@stable", "a.b-c_d:12"])
def test_a_target_reads_back_as_it_was_written(text):
    assert str(Target.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "../x", "a/b", "a b", "m:", "m:0", "m:01", "m:x", "m@", "m@Stable", "a..b", "é", "m:1\n", "m\n"]
)
def test_a_name_that_could_leave_its_place_is_refused(text):
    with pytest.raises(InvalidRequest):
        Target.parse(text)


def test_a_model_name_has_a_bounded_length():
    assert check_model("a" * 100)
    with pytest.raises(InvalidRequest):
        check_model("a" * 101)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(InvalidRequest, match="expected one of"):
        TensorSpec("x", "FLOAT", (1,))


@pytest.mark.parametrize(
    ("shape", "fits"), [((1, 3), True), ((0, 3), True), ((4, 2), False), ((3,), False), ((1, 3, 1), False)]
)
def test_a_spec_admits_only_shapes_that_fit(shape, fits):
    assert SIGNATURE.inputs[0].admits(shape) is fits


def test_a_batched_signature_needs_free_rows_everywhere():
    with pytest.raises(InvalidRequest, match="free dimension 0"):
        Signature((TensorSpec("x", "FP32", (1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), True, 8)


def test_row_bytes_are_unknown_where_a_dimension_is_free():
    assert TensorSpec("x", "FP16", (-1, 3, 5)).row_bytes() == 30
    assert TensorSpec("x", "FP16", (-1, -1)).row_bytes() is None
    assert TensorSpec("x", "BYTES", (-1, 2)).row_bytes() is None


@given(st.dictionaries(st.integers(1, 200), st.floats(1e-5, 10), min_size=1, max_size=8), st.integers(1, 400))
def test_a_cost_is_never_negative_and_measured_points_are_kept(points, rows):
    curve = CostCurve.of(points)
    assert curve.run_s(rows) > 0
    if all(a[1] <= b[1] for a, b in pairwise(sorted(points.items()))):
        for r, s in points.items():
            assert curve.run_s(r) == pytest.approx(s)


def test_an_empty_curve_predicts_nothing():
    assert CostCurve().run_s(7) == 0.0
    assert CostCurve().best_rows(32) == 32


def test_a_batch_stops_paying_where_the_curve_gets_straight():
    curve = CostCurve.of({1: 0.010, 2: 0.011, 4: 0.013, 8: 0.026, 16: 0.052})
    assert curve.best_rows(16) == 4
    assert curve.rows_per_s(16) == pytest.approx(4 / 0.013)


def test_a_document_survives_encoding():
    document = ModelDocument(
        "m", {"1": record(), "2": record("2", deploy=None)}, TrafficSplit.all_to("1"), {"stable": "1"}, 3, 7, "e"
    )
    assert decode_document(encode(document)) == document


def test_a_document_of_another_kind_is_refused():
    with pytest.raises(InvalidRequest):
        decode_document(b'{"name": 3}')


def test_a_status_survives_encoding():
    status = VersionStatus("1", "READY", "why", 2, 3, True, "d", "spec", 1.5)
    assert decode_status(encode(status)) == status


def test_traffic_cannot_go_to_a_version_that_is_not_deployed():
    with pytest.raises(Conflict, match="not deployed"):
        ModelDocument("m", {"1": record(deploy=None)}, TrafficSplit.all_to("1"))


def test_traffic_cannot_go_to_a_version_that_is_not_there():
    with pytest.raises(ModelNotFound):
        ModelDocument("m", {}, TrafficSplit.all_to("1"))


def test_a_label_cannot_dangle():
    with pytest.raises(Conflict, match="stable"):
        ModelDocument("m", {}, labels={"stable": "1"})


def test_a_target_resolves_to_version_label_or_split():
    document = ModelDocument("m", {"1": record(), "2": record("2")}, TrafficSplit.all_to("2"), {"old": "1"})
    assert document.resolve(Target.parse("m:1")) == "1"
    assert document.resolve(Target.parse("m@old")) == "1"
    assert document.resolve(Target.parse("m")) == "2"
    for missing in ("m:3", "m@new"):
        with pytest.raises(ModelNotFound, match="there are"):
            document.resolve(Target.parse(missing))


def test_without_a_split_nothing_takes_traffic():
    with pytest.raises(ModelNotFound, match="prism split"):
        ModelDocument("m", {"1": record()}).resolve(Target("m"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_replicas", 2), ("max_replicas", 0), ("num_cpus", -1), ("max_wait_s", 11), ("default_deadline_s", 0)],
)
def test_impossible_deploy_settings_are_refused_by_name(field, value):
    with pytest.raises(InvalidRequest, match=field if field != "max_replicas" else "replicas"):
        DeploySettings(**{field: value})


def test_a_batch_that_can_never_fill_is_refused_with_both_numbers():
    with pytest.raises(InvalidRequest, match=r"64 rows can never fill.*max_queue_rows=32"):
        DeploySettings(max_batch_rows=64, max_queue_rows=32)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"http": {"prt": 1}}, "settings.http.prt"),
        ({"nope": 1}, "settings.nope"),
        ({"gateway": {"log_sample": 1.5}}, "settings.gateway.log_sample"),
        ({"gateway": {"poll_s": 0}}, "settings.gateway.poll_s"),
        ({"gateway": {"max_deadline_s": 0}}, "settings.gateway.max_deadline_s"),
        ({"gateway": {"max_waiting_bytes": 0}}, "settings.gateway.max_waiting_bytes"),
        ({"ray": {"num_gpus": -1}}, "settings.ray.num_gpus"),
        ({"http": 3}, "settings.http"),
        ([], "mapping"),
        ({"http": {"port": "x"}}, "port"),
        ({"http": {"port": 70000}}, "http.port"),
    ],
)
def test_a_wrong_setting_is_named(raw, named):
    with pytest.raises(InvalidRequest, match=named):
        settings_from(raw)


def test_settings_come_from_yaml(tmp_path):
    file = tmp_path / "prism.yaml"
    file.write_text("http:\n  port: 8123\ngateway: {replicas: 2}\n")
    assert read_settings(file).http.port == 8123
    file.write_text("http: [")
    with pytest.raises(InvalidRequest, match=r"prism\.yaml: while parsing .* line 1") as caught:
        read_settings(file)
    assert "\n" not in caught.value.message
    file.write_bytes(b"\x80\x81")
    with pytest.raises(InvalidRequest, match=r"prism\.yaml"):
        read_settings(file)
    with pytest.raises(InvalidRequest, match="No such file"):
        read_settings(tmp_path / "none.yaml")


def test_a_boot_file_is_for_its_owner_only_and_reads_back(tmp_path):
    boot = Boot("/h", "/r", "/d", "redis://x", "/a", "127.0.0.1:1", "t", "w", 1, 2, Settings())
    file = tmp_path / "boot.json"
    boot.write(file)
    assert Boot.read(file) == boot
    assert file.stat().st_mode & 0o077 == 0


def test_errors_keep_their_kind_over_the_wire():
    assert isinstance(error_from_wire("Overloaded", "full"), Overloaded)
    unknown = error_from_wire("SystemExit", "x")
    assert isinstance(unknown, EngineFailed) and unknown.message == "x"
