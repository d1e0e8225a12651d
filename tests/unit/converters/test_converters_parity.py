"""What counts as the same answer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from converters.proof.parity import TOLERANCES, Parity, compare, parse_tolerance, tolerance_for
from converters.worker import _plain

FP32, INT8 = TOLERANCES["fp32"], TOLERANCES["int8"]


def logits(rows: int = 8, classes: int = 5) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, classes)).astype("f4")


def test_equal_outputs_pass_with_infinite_signal_to_noise():
    result = compare("y", [logits()], [logits()], FP32)
    assert result.failures == ()
    assert (result.worst_abs, result.share_out, result.top1, result.sqnr_db) == (0.0, 0.0, 1.0, float("inf"))


def test_one_wrong_element_in_a_thousand_fails_fp32():
    e = np.random.default_rng(1).standard_normal(1000).astype("f4")
    g = e.copy()
    g[7] += 0.5
    result = compare("y", [e], [g], FP32)
    assert result.share_out == pytest.approx(0.001)
    assert any("0.10% of 1000 elements" in text for text in result.failures)


@pytest.mark.parametrize(
    ("expected", "got"),
    [([], []), ([np.zeros((0, 3), "f4")], [np.zeros((0, 3), "f4")]), ([np.full(4, np.nan)], [np.full(4, np.nan)])],
)
def test_comparing_nothing_fails(expected, got):
    assert any("nothing was compared" in text for text in compare("y", expected, got, FP32).failures)


def test_a_parity_without_outputs_fails():
    assert Parity("torch", "fp32", FP32, (), ()).failures


def test_a_nan_that_the_source_does_not_have_fails():
    g = logits()
    g[0, 0] = np.nan
    assert any("NaN in 1 elements, in 0" in text for text in compare("y", [logits()], [g], INT8).failures)


def test_nan_in_the_same_places_is_left_out_of_the_numbers():
    e, g = logits(), logits()
    e[0, 0] = g[0, 0] = np.nan
    result = compare("y", [e], [g], FP32)
    assert result.failures == () and result.worst_abs == 0.0


def test_an_infinity_of_the_other_sign_fails():
    e, g = logits(), logits()
    e[0, 0], g[0, 0] = np.inf, -np.inf
    assert any("infinities" in text for text in compare("y", [e], [g], FP32).failures)


def test_another_shape_or_kind_of_number_fails():
    assert "expected shape [8, 5], got [8, 4]" in compare("y", [logits()], [logits(classes=4)], FP32).failures
    assert compare("y", [logits()], [logits().astype("i4")], FP32).failures


def test_int8_forgives_elements_but_not_the_top_class():
    e = np.tile(np.float32([0.0, 10.0]), (20, 1))
    near, flipped = e + 0.3, e.copy()
    flipped[:4] = flipped[:4, ::-1]
    assert compare("y", [e], [near], INT8).failures == ()
    result = compare("y", [e], [flipped], INT8)
    assert result.top1 == pytest.approx(0.8)
    assert any("top class agrees in 80.0%" in text and "top1=0" in text for text in result.failures)


def test_noise_as_loud_as_the_signal_fails_int8():
    e = np.random.default_rng(2).standard_normal((4, 3, 8)).astype("f4")
    result = compare("y", [e], [e * 0], INT8)
    assert result.sqnr_db == pytest.approx(0.0)
    assert any("0.0 dB" in text for text in result.failures)


def test_top_class_is_only_asked_of_outputs_that_look_like_a_classifiers():
    assert compare("y", [np.ones((4, 1), "f4")], [np.ones((4, 1), "f4")], FP32).top1 is None
    assert compare("y", [np.ones((4, 2, 2), "f4")], [np.ones((4, 2, 2), "f4")], FP32).top1 is None


def test_whole_numbers_and_text_are_compared_exactly():
    assert compare("y", [np.arange(9)], [np.arange(9)], FP32).failures == ()
    assert compare("y", [np.arange(9)], [np.arange(9) + 1], INT8).failures
    text = np.array(["a", "ü"], dtype=object)
    assert compare("y", [text], [np.array([b"a", "ü".encode()], dtype=object)], FP32).failures == ()
    assert compare("y", [text], [np.array(["a", "u"], dtype=object)], FP32).failures


def test_cases_of_different_sizes_are_judged_together():
    result = compare("y", [logits(1), logits(3)], [logits(1), logits(3)], FP32)
    assert result.elements == 20


def test_json_has_no_infinities():
    parity = Parity("torch", "fp32", FP32, ({"rows": 8},), (compare("y", [logits()], [logits()], FP32),))
    assert parity.to_json()["outputs"][0]["sqnr_db"] is None
    assert parity.to_json()["passed"] is True


def test_a_tolerance_says_what_was_overridden():
    tolerance = tolerance_for("int8", parse_tolerance("sqnr=20, top1=0.9"))
    assert (tolerance.min_sqnr_db, tolerance.min_top1, tolerance.rel) == (20, 0.9, INT8.rel)
    assert "overridden: sqnr=20, top1=0.9" in tolerance.why


@pytest.mark.parametrize("text", ["sqnr", "sqnr=", "speed=1", "rel=nan", "top1=inf"])
def test_a_tolerance_that_cannot_be_read_is_refused(text):
    with pytest.raises(InvalidRequest, match="tolerance"):
        parse_tolerance(text)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1), st.floats(1.5, 4.0))
def test_anything_equals_itself_and_nothing_equals_its_multiple(values, factor):
    array = np.array(values, dtype="f4")
    assert compare("y", [array], [array], FP32).failures == ()
    if np.abs(array).max() > 1e-30:
        assert compare("y", [array], [array.astype("f8") * factor], FP32).failures


def test_bytes_that_are_no_text_are_compared_as_bytes():
    """They come back from another process as text with surrogates in their place."""
    source = np.array([[b"\xff\xfe"], ["zwölf".encode()]], dtype=object)
    same, other = _plain(source), _plain(np.array([[b"\xff\xfd"], ["zwölf".encode()]], dtype=object))
    assert compare("y", [source], [same], FP32).failures == ()
    assert any("50.00% of 2 values differ" in text for text in compare("y", [source], [other], FP32).failures)
