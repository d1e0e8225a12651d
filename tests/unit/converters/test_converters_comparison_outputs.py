"""What two models are asked, and which of their outputs are compared."""

import numpy as np
import pytest

from cluster.errors import ConversionFailed, InvalidRequest
from cluster.tensors import ANY, Signature, TensorSpec
from converters.candidate import Options
from converters.proof.comparison import _calls
from converters.proof.pairing import pair_outputs
from converters.samples import cases_for


def signature(*outputs, max_rows=8):
    specs = tuple(out if isinstance(out, TensorSpec) else TensorSpec(out, "FP32", (ANY, 3)) for out in outputs)
    return Signature((TensorSpec("x", "FP32", (ANY, 4)),), specs, max_rows > 1, max_rows)


def paired(first, second, *asked):
    return pair_outputs(("a.onnx", "b.onnx"), first, second, asked)


def test_what_the_second_lacks_is_a_failure_and_what_it_has_more_is_told():
    more = paired(signature("y"), signature("y", "z"))
    assert not more.failures and more.notes == ("outputs that only b.onnx has, not compared: z",)
    less = paired(signature("y", "z"), signature("y"))
    assert less.failures[0].startswith("outputs that only a.onnx has, not compared: z") and not less.notes
    other = paired(signature("aux", "scores"), signature("aux", TensorSpec("p", "FP32", (ANY, 5))))
    assert dict(other.columns) == {"aux": (0, 0)} and "scores" in other.failures[0] and "p" in other.notes[0]


def test_what_no_name_pairs_is_paired_by_its_place_where_it_could_be_the_same():
    assert paired(signature("y", "z"), signature("z", "y")).notes == ()
    found = paired(signature("aux", "scores"), signature("logits", "aux"))
    assert dict(found.columns) == {"aux": (0, 1), "scores": (1, 0)} and not found.failures
    assert found.notes == ("paired by their places: scores with logits",)
    text = signature(TensorSpec("p", "BYTES", (ANY, 3)))
    with pytest.raises(ConversionFailed, match="nothing was compared: no output in common"):
        paired(signature("y"), text)


def test_outputs_that_are_asked_for_are_compared_and_no_others():
    sides = signature("aux", "scores", "k"), signature("k", "logits")
    found = paired(*sides, "scores=logits", "k")
    assert dict(found.columns) == {"scores": (1, 1), "k": (2, 0)} and not found.failures
    assert found.notes == ("left out by --output: aux",)
    for asked, message in ((["p"], "one of a.onnx"), (["aux"], "one of b.onnx"), (["k", "k=logits"], "once")):
        with pytest.raises(InvalidRequest, match=f"output: expected .*{message}"):
            paired(*sides, *asked)


@pytest.mark.parametrize(("first", "second", "most"), [(64, 4, 4), (4, 64, 4), (64, 1, 64)])
def test_no_call_has_more_rows_than_each_of_both_takes(tmp_path, first, second, most):
    """The second of (64, 1) does not share calls, and takes as many rows in one request as there are."""
    np.savez(tmp_path / "rows.npz", x=np.zeros((100, 4), "f4"))
    sides = signature("y", max_rows=first), signature("y", max_rows=second)
    specs, batched, rows = _calls(*sides, [0])
    cases = cases_for(specs, Options(sample=tmp_path / "rows.npz", max_rows=rows), batched)
    assert max(case.rows for case in cases) == most
