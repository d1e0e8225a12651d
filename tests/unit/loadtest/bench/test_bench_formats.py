import json

import numpy as np
import pytest

from loadtest.bench.formats import FORMATS, answer_values, request_bytes

ROW = np.array([[0.1, -2.5], [3.0, 1e-7]], dtype=np.float32)


def parts(raw):
    head, _, body = raw.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    return line, dict(field.split(": ") for field in fields), body


@pytest.mark.parametrize("name", FORMATS)
def test_every_request_states_the_length_of_its_body(name):
    line, fields, body = parts(request_bytes(name, "/v2/models/m/infer", 80, ROW))
    assert line == "POST /v2/models/m/infer HTTP/1.1"
    assert int(fields["Content-Length"]) == len(body)
    assert fields["Host"] == "127.0.0.1:80"


def test_a_raw_request_is_the_tensor_alone():
    _, fields, body = parts(request_bytes("raw", "/", 80, ROW))
    assert body == ROW.tobytes()
    assert fields["Inference-Header-Content-Length"] == "0"


def test_a_binary_request_has_the_tensor_behind_its_header():
    _, fields, body = parts(request_bytes("binary", "/", 80, ROW))
    length = int(fields["Inference-Header-Content-Length"])
    (tensor,) = json.loads(body[:length])["inputs"]
    assert tensor["shape"] == [1, 2, 2]
    assert tensor["parameters"]["binary_data_size"] == 16
    assert body[length:] == ROW.tobytes()


def test_a_json_request_has_the_same_numbers():
    _, fields, body = parts(request_bytes("json", "/", 80, ROW))
    (tensor,) = json.loads(body)["inputs"]
    assert np.array_equal(np.array(tensor["data"], dtype=np.float32), ROW.ravel())
    assert "Inference-Header-Content-Length" not in fields


def test_an_unknown_format_is_named():
    with pytest.raises(ValueError, match="'protobuf'"):
        request_bytes("protobuf", "/", 80, ROW)


def test_an_answer_is_read_in_each_of_the_three_forms():
    tensor = ROW.tobytes()
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n" + tensor
    binary = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 4\r\n\r\n{  }" + tensor
    values = json.dumps({"outputs": [{"data": ROW.ravel().tolist()}]}).encode()
    text = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + values
    for answer in (raw, binary, text):
        assert np.array_equal(answer_values(answer), ROW.ravel())
