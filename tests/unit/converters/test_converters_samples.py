"""The data a conversion is proved on."""

import numpy as np
import pytest

from cluster.errors import InvalidRequest
from cluster.tensors import ANY, TensorSpec
from converters import samples
from converters.candidate import Options
from converters.samples import (
    calibration_calls,
    call_cases,
    cases_for,
    cases_notes,
    check_data,
    parse_input,
    random_data,
    read_npz,
    row_cases,
)
from converters.sealing import write_sample

X = TensorSpec("x", "FP32", (ANY, 2))


def test_a_number_without_dimensions_stays_one(tmp_path):
    np.savez(tmp_path / "d.npz", rate=np.array(16000))
    assert read_npz(tmp_path / "d.npz", "sample")["rate"].shape == ()


def test_an_input_names_its_free_axes_with_an_example_size():
    spec = parse_input("ids:INT64:N,L=128")
    assert (spec.name, spec.dtype, spec.shape, dict(spec.axes)) == ("ids", "INT64", (1, 128), {0: "N", 1: "L"})
    assert parse_input("image:FP32:N,3,224,224").shape == (1, 3, 224, 224)
    assert parse_input("x:FP32:4,3").axes == {}


@pytest.mark.parametrize(
    "text",
    ["x", "x:FP32", "x:F32:N,3", ":FP32:N", "x:FP32:3,N", "x:FP32:N,0", "x:FP32:N,-1", "x:FP32:N,L", "x:FP32:N,,3"],
)
def test_an_input_that_cannot_be_read_is_refused(text):
    with pytest.raises(InvalidRequest, match="input"):
        parse_input(text)


def test_pickles_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InvalidRequest, match="plain arrays"):
        read_npz(tmp_path / "a.npz", "sample")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK nonsense")
    with pytest.raises(InvalidRequest, match=r"sample: a\.npz is not an \.npz"):
        read_npz(tmp_path / "a.npz", "sample")
    with pytest.raises(InvalidRequest, match="not there"):
        read_npz(tmp_path / "b.npz", "calibrate")


def test_an_npz_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000, "f4"))
    monkeypatch.setattr(samples, "MAX_DATA_BYTES", 100_000)
    with pytest.raises(InvalidRequest, match="unpacks to"):
        read_npz(tmp_path / "a.npz", "sample")


def test_no_rows_are_no_data(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((0, 2), "f4"))
    with pytest.raises(InvalidRequest, match="no elements"):
        read_npz(tmp_path / "a.npz", "sample")


def test_data_must_have_the_names_and_shapes_of_the_inputs():
    with pytest.raises(InvalidRequest, match=r"sample: expected arrays \['x'\], got \['y'\]"):
        check_data({"y": np.zeros((2, 2), "f4")}, [X], "sample", batched=True)
    with pytest.raises(InvalidRequest, match=r"x: expected shape \[-1, 2\], got \[2, 3\]"):
        check_data({"x": np.zeros((2, 3), "f4")}, [X], "sample", batched=True)
    with pytest.raises(InvalidRequest, match="same rows"):
        check_data(
            {"x": np.zeros((2, 2), "f4"), "z": np.zeros((3, 2), "f4")},
            [X, TensorSpec("z", "FP32", (ANY, 2))],
            "sample",
            batched=True,
        )


def test_data_is_cast_within_its_kind_only():
    assert check_data({"x": np.zeros((1, 2), "f8")}, [X], "sample", True)["x"].dtype == np.float32
    ids = TensorSpec("x", "INT64", (ANY, 2))
    with pytest.raises(InvalidRequest, match="expected INT64"):
        check_data({"x": np.zeros((1, 2), "f4")}, [ids], "sample", True)


def test_rows_1_and_3_a_larger_count_and_the_most_are_run_with_the_users_data():
    data = {"x": np.arange(40, dtype="f4").reshape(20, 2)}
    cases = row_cases(data, "sample", max_rows=64)
    assert [case.rows for case in cases] == [1, 3, 20, 64]
    assert all(case.origin == "sample" for case in cases)
    np.testing.assert_array_equal(cases[2].inputs["x"], data["x"])


def test_one_row_of_data_is_repeated():
    cases = row_cases({"x": np.ones((1, 2), "f4")}, "sample", max_rows=64)
    assert [case.rows for case in cases] == [1, 3, 8, 64]


def test_the_most_rows_are_run_however_many_they_are_and_none_of_it_is_kept(tmp_path):
    few, many = ({"x": np.arange(2 * n, dtype="f4").reshape(n, 2)} for n in (20, 1000))
    assert [case.rows for case in row_cases(few, "sample", max_rows=128)] == [1, 3, 20, 128]
    cases = row_cases(many, "sample", max_rows=1000)
    assert [case.rows for case in cases] == [1, 3, 64, 1000]
    assert cases_notes(cases, [X], Options(max_rows=1000), batched=True) == ()
    write_sample(tmp_path, cases, [X])
    assert read_npz(tmp_path / "sample.npz", "sample")["x"].shape == (3, 2)


def test_the_most_rows_are_as_many_as_their_bytes_allow_and_a_note_says_so(monkeypatch):
    monkeypatch.setattr(samples, "MOST_BYTES", 800)  # of 8 a row
    data = {"x": np.ones((5, 2), "f4")}
    cases = row_cases(data, "sample", max_rows=250_000)
    assert [case.rows for case in cases] == [1, 3, 8, 100]
    (note,) = cases_notes(cases, [X], Options(max_rows=250_000), batched=True)
    assert "up to 100 rows a call, of 250000 allowed" in note and "2 MB" in note
    monkeypatch.setattr(samples, "MOST_BYTES", 8)
    assert [case.rows for case in row_cases(data, "sample", max_rows=1000)] == [1, 3, 8, 64]


def test_no_call_is_larger_than_max_rows_and_no_data_is_lost():
    data = {"x": np.arange(40, dtype="f4").reshape(20, 2)}
    cases = row_cases(data, "sample", max_rows=8)
    assert max(case.rows for case in cases) == 8
    seen = np.concatenate([case.inputs["x"] for case in cases])
    assert set(map(tuple, data["x"])) <= set(map(tuple, seen))


def test_data_for_a_fixed_batch_is_cut_into_calls():
    spec = TensorSpec("x", "FP32", (2, 3))
    cases = call_cases({"x": np.zeros((6, 3), "f4")}, [spec], "sample")
    assert [case.inputs["x"].shape for case in cases] == [(2, 3)] * 3


def test_random_whole_numbers_index_any_table_and_text_is_text():
    specs = [TensorSpec("i", "INT64", (ANY, 5)), TensorSpec("b", "BOOL", (ANY,)), TensorSpec("t", "BYTES", (ANY, 1))]
    data = random_data(specs, rows=4)
    assert set(np.unique(data["i"])) <= {0, 1} and data["i"].dtype == np.int64
    assert data["b"].dtype == bool and data["t"].dtype.kind == "U"


def test_without_data_cases_say_that_they_are_random():
    assert {case.origin for case in cases_for([X], Options(), batched=True)} == {"random"}


def test_a_stated_size_is_used_for_random_data():
    spec = TensorSpec("ids", "INT64", (ANY, ANY))
    cases = cases_for([spec], Options(inputs=("ids:INT64:N,L=7",)), batched=True)
    assert cases[0].inputs["ids"].shape == (1, 7)


def test_a_free_axis_that_was_proved_at_one_size_is_told_unless_its_range_was_stated():
    specs = [TensorSpec(name, "INT64", (ANY, ANY)) for name in ("ids", "mask")]

    def notes(**changes):
        options = Options(max_rows=8, **changes)
        return cases_notes(cases_for(specs, options, batched=True), specs, options, batched=True)

    stated = ("ids:INT64:N,L=128", "mask:INT64:N,L=128")
    (note,) = notes(inputs=stated)
    assert note.startswith("axis 1 of ids, mask is free and was proved at 128 only: --dynamic ids:1=MIN..MAX")
    (note,) = notes(inputs=stated, dynamic=("ids:1=1..128",))
    assert note.startswith("axis 1 of mask is free")
    assert notes(dynamic=("ids:1=1..128", "mask:1=1..128")) == ()


def test_every_calibration_row_is_used_once(tmp_path):
    np.savez(tmp_path / "c.npz", x=np.arange(38, dtype="f4").reshape(19, 2))
    calls = calibration_calls(tmp_path / "c.npz", [X], batched=True)
    assert np.concatenate([call["x"] for call in calls]).ravel().tolist() == list(range(38))
