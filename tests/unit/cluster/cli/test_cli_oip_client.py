"""The small protocol client: what it writes and what it reads."""

import json

import numpy as np
import pytest

from cluster.cli.oip_client import decode, encode, infer_path, json_body
from cluster.errors import InvalidRequest, OperatorError
from cluster.names import Target
from cluster.tensors import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("t", "BYTES", (-1, 1))), (TensorSpec("y", "FP32", (-1, 2)),), True, 8
)
INPUTS = {"t": np.array([["ä"], ["b"]], dtype=object), "x": np.arange(4, dtype=np.float64).reshape(2, 2)}


def test_inputs_go_out_in_the_signatures_order_and_dtype():
    body, length = encode(INPUTS, SIGNATURE)
    header = json.loads(body[:length])
    assert [i["name"] for i in header["inputs"]] == ["x", "t"]
    assert body[length : length + 16] == INPUTS["x"].astype("<f4").tobytes()
    assert body[length + 16 :] == b"\x02\x00\x00\x00\xc3\xa4\x01\x00\x00\x00b"


def test_a_shape_that_does_not_fit_is_named():
    with pytest.raises(InvalidRequest, match=r"inputs.x: expected shape \[-1, 2\], got \[2, 3\]"):
        encode({**INPUTS, "x": np.zeros((2, 3), np.float32)}, SIGNATURE)


def test_a_dtype_that_would_lose_its_kind_is_refused():
    with pytest.raises(InvalidRequest, match="expected FP32, got complex128"):
        encode({**INPUTS, "x": np.zeros((2, 2), np.complex128)}, SIGNATURE)


def test_binary_and_json_outputs_are_read_alike():
    tensor = np.array([[1.5, 2.5]], "<f4")
    about = {"name": "y", "datatype": "FP32", "shape": [1, 2]}
    head = {"model_name": "m", "model_version": "3"}
    binary = json.dumps({**head, "outputs": [{**about, "parameters": {"binary_data_size": 8}}]}).encode()
    plain = json.dumps({**head, "outputs": [{**about, "data": [1.5, 2.5]}]}).encode()
    for answer in (decode(binary + tensor.tobytes(), len(binary)), decode(plain, None)):
        np.testing.assert_array_equal(answer.outputs["y"], tensor)
        assert (answer.model, answer.version) == ("m", "3")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"outputs": [{}]}', b'{"model_name": "m"}'])
def test_an_answer_that_is_none_is_a_clear_error(raw):
    with pytest.raises(OperatorError, match="cannot be read"):
        decode(raw, None)


def test_a_tensor_cut_short_is_a_clear_error():
    header = {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    raw = json.dumps({"model_name": "m", "outputs": [header]}).encode()
    with pytest.raises(OperatorError, match="cut short"):
        decode(raw + b"1234", len(raw))


def test_versions_and_labels_have_paths_of_their_own():
    assert infer_path(Target("m")) == "/v2/models/m/infer"
    assert infer_path(Target("m", version="2")) == "/v2/models/m/versions/2/infer"
    assert infer_path(Target("m", label="canary")) == "/v2/models/m/labels/canary/infer"


def test_the_json_request_for_curl_is_valid_json_with_flat_data():
    request = json.loads(json.dumps(json_body(INPUTS, SIGNATURE)))
    assert request["inputs"][0]["data"] == [0, 1, 2, 3]
    assert request["inputs"][1]["data"] == ["ä", "b"]
