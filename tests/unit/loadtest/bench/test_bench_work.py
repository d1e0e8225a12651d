import numpy as np
import pytest

from converters.onnx.session import open_session as product_session
from loadtest.bench.work import EXAMPLES, WORKS, Prepared, open_session, prepare


@pytest.mark.parametrize("name", ["T", "E"])
def test_a_work_is_the_same_every_time_and_gives_different_answers_to_different_rows(name, tmp_path):
    first, second = (prepare(WORKS[name], tmp_path / folder) for folder in "ab")
    assert first.model_file.read_bytes() == second.model_file.read_bytes()
    assert len({row.tobytes() for row in first.expected}) == EXAMPLES
    assert np.array_equal(first.expected, second.expected)


def test_bodies_are_as_large_as_their_description_says():
    assert [WORKS[name].body_bytes for name in "TME"] == [256, 49_152, 602_112]


def test_every_contestant_runs_the_model_with_the_settings_of_the_product(tmp_path):
    file = prepare(WORKS["T"], tmp_path).model_file
    ours, product = (session.get_session_options() for session in (open_session(file), product_session(file)))
    for name in ("intra_op_num_threads", "inter_op_num_threads", "execution_mode", "graph_optimization_level"):
        assert getattr(ours, name) == getattr(product, name), name
    spinning = "session.intra_op.allow_spinning"
    assert ours.get_session_config_entry(spinning) == product.get_session_config_entry(spinning) == "0"


def test_an_answer_matches_within_a_thousandth_of_the_largest_value(tmp_path):
    expected = np.array([[1.0, -100.0]], dtype=np.float32)
    made = Prepared(WORKS["T"], tmp_path, tmp_path, np.zeros((1, 64), np.float32), expected)
    assert made.matches(0, np.array([1.09, -100.0], np.float32))
    assert not made.matches(0, np.array([1.2, -100.0], np.float32))
    assert not made.matches(0, np.array([np.nan, -100.0], np.float32))
    assert not made.matches(0, np.array([1.0], np.float32))
