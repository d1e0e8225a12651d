import json

import numpy as np
import pytest

from cluster.errors import InvalidRequest
from loadtest.calls import calls_for
from loadtest.scenario import LoadTarget

TYPES = {
    "x": ("FP16", [-1, 3]),
    "mask": ("BOOL", [-1, 2]),
    "ids": ("INT64", [-1, -1]),
    "text": ("BYTES", [-1, 1]),
    "scale": ("FP32", [2]),
}


def fetch(*names):
    inputs = [{"name": name, "datatype": TYPES[name][0], "shape": TYPES[name][1]} for name in names]
    return lambda path: {"inputs": inputs}


def sample(folder, **arrays):
    np.savez(folder / "s.npz", **arrays)
    return str(folder / "s.npz")


def parts(call):
    """Input names, shapes and raw bytes of a binary body."""
    length = int(call.headers["Inference-Header-Content-Length"])
    found, at = {}, length
    for item in json.loads(call.body[:length])["inputs"]:
        size = item["parameters"]["binary_data_size"]
        found[item["name"]] = (item["shape"], call.body[at : at + size])
        at += size
    assert at == len(call.body)
    return found


def test_several_inputs_of_every_kind_come_from_one_file(tmp_path):
    file = sample(
        tmp_path,
        x=np.ones((2, 3), "f2"),
        ids=np.arange(10).reshape(2, 5),
        text=np.array([["a"], ["bü"]]),
        mask=np.array([[True, False]] * 2),
    )
    target = LoadTarget(model="m", sample=file, rows=2, variants=1)
    (call,) = calls_for(target, fetch("x", "ids", "text", "mask"), 1)
    found = parts(call)
    assert found["x"] == ([2, 3], np.ones((2, 3), "f2").tobytes())
    assert found["ids"] == ([2, 5], np.arange(10).tobytes())
    assert found["text"] == ([2, 1], b"\x01\x00\x00\x00a\x03\x00\x00\x00b\xc3\xbc")
    assert found["mask"] == ([2, 2], b"\x01\x00\x01\x00")


def test_a_signature_alone_gives_halves_flags_and_inputs_without_rows():
    (call,) = calls_for(LoadTarget(model="m", rows=4, variants=1), fetch("x", "mask", "scale"), 1)
    found = parts(call)
    assert {name: shape for name, (shape, _) in found.items()} == {"x": [4, 3], "mask": [4, 2], "scale": [2]}
    assert len(found["x"][1]) == 4 * 3 * 2
    assert set(found["mask"][1]) <= {0, 1}


def test_a_request_that_was_saved_as_json_is_a_sample(tmp_path):
    file = tmp_path / "request.json"
    request = {"inputs": [{"name": "ids", "shape": [2, 2], "datatype": "INT64", "data": [1, 2, 3, 4]}]}
    file.write_text(json.dumps(request))
    calls = calls_for(LoadTarget(model="m", sample=str(file), variants=2), fetch("ids"), 1)
    assert [parts(call)["ids"] for call in calls] == [
        ([1, 2], np.array([1, 2]).tobytes()),
        ([1, 2], np.array([3, 4]).tobytes()),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"request\.json: "),
        ('{"input": []}', r"'inputs' is missing"),
        ('{"inputs": [{"name": "ids", "datatype": "INT64", "shape": [1, 1]}]}', r"'data' is missing"),
        ('{"inputs": [{"name": "ids", "datatype": "INT64", "shape": [1, 3], "data": [1]}]}', r"reshape"),
        ('{"inputs": [{"name": "ids", "datatype": "LONG", "shape": [1], "data": [1]}]}', r"ids\.dtype: expected"),
    ],
)
def test_a_json_file_that_is_no_request_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "request.json").write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        calls_for(LoadTarget(model="m", sample=str(tmp_path / "request.json")), fetch("ids"), 1)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("ids", np.array([[0.5]]), r"sample\.ids: expected INT64, got float64"),
        ("x", np.array([["a", "b", "c"]]), r"sample\.x: expected FP16, got <U1"),
        ("ids", np.zeros((1, 2, 3), "i8"), r"sample\.ids: expected \[-1, -1\], got \[1, 2, 3\]"),
        ("x", np.zeros((0, 3), "f4"), r"sample\.x: expected at least one row"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused_by_input(tmp_path, name, array, message):
    with pytest.raises(InvalidRequest, match=message):
        calls_for(LoadTarget(model="m", sample=sample(tmp_path, **{name: array})), fetch(name), 1)


def test_files_that_are_no_samples_are_refused_in_one_line(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and then nothing")
    for name in ("one.npy", "broken.npz", "missing.npz"):
        with pytest.raises(InvalidRequest, match=name) as caught:
            calls_for(LoadTarget(model="m", sample=str(tmp_path / name)), fetch("x"), 1)
        assert "\n" not in caught.value.message


def test_what_an_encoding_cannot_say_is_refused_before_the_run(tmp_path):
    with pytest.raises(InvalidRequest, match=r"raw needs an input of fixed size, 'ids' is INT64 \[-1, -1\]"):
        calls_for(LoadTarget(model="m", encoding="raw", shapes={"ids": [3]}), fetch("ids"), 1)
    with pytest.raises(InvalidRequest, match="input 'x' is FP16, which has no JSON form"):
        calls_for(LoadTarget(model="m", encoding="json"), fetch("x"), 1)
    file = sample(tmp_path, text=np.array([[b"\xff\xfe"]]))
    with pytest.raises(InvalidRequest, match="input 'text' is not UTF-8 text"):
        calls_for(LoadTarget(model="m", encoding="json", sample=file), fetch("text"), 1)
