"""Every counterpart answers as ONNX's own examples of its operator say."""

import re
import warnings

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="run in the environment that `make env-tensorflow` makes")

from onnx import TensorProto  # noqa: E402
from onnx.backend.test.case.node import collect_testcases  # noqa: E402
from onnx.numpy_helper import to_array  # noqa: E402

from converters.tensorflow.from_onnx import unsupported  # noqa: E402
from converters.tensorflow.graph import COUNTERPARTS, Rebuilding  # noqa: E402

# What is refused or differs on purpose, by the example's name.
LEFT_OUT = {
    r"e4m3|e5m2|float4|E8M0|FLOAT8|FLOAT4|INT4|INT2|_u?int4|_u?int2$|_u?int2_": "types TensorFlow cannot compute with",
    r"expanded": "made of operators that have examples of their own",
    r"training": "training mode",
    r"bf16|bfloat16|BFLOAT16|float16|FLOAT16|fp16": "rounding in other places",
    r"blocked": "quantisation in blocks",
    r"antialias|crop_and_resize|not_larger|not_smaller": "resizing that TensorFlow does not do",
    r"resize_downsample_scales_(linear|cubic)_align_corners$": "computed from whole sizes, as ONNX Runtime does",
    r"multiply|reduction_mul": "no such scatter",
    r"maxpool_with_argmax": "indices of the largest",
    r"dilations_large|convtranspose_dilations": "dilations with strides",
    r"bitshift": "shifts by more bits than there are",
    r"cast_no_saturate|castlike_no_saturate": "types TensorFlow cannot compute with",
}


def cases():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    return [case for case in found if case.model is not None and not unsupported(case.model)]


def arrays(values):
    return [to_array(value) if isinstance(value, TensorProto) else np.asarray(value) for value in values]


def plain(array):
    if array.dtype.kind in "OUS":
        return np.array([x.decode() if isinstance(x, bytes) else str(x) for x in array.ravel().tolist()])
    return array


def answers(model, inputs):
    """What the rebuilt model gives: the first input is free, the others are parameters."""
    names = [value.name for value in model.graph.input]
    rebuilding = Rebuilding(model)

    def run(x):
        found = rebuilding.run({**dict(zip(names[1:], inputs[1:], strict=True)), names[0]: x})
        return [found[value.name] for value in model.graph.output]

    return [value.numpy() for value in tf.function(run, autograph=False)(tf.constant(inputs[0]))]


def problem(case):
    for inputs, outputs in case.data_sets:
        if not inputs:
            continue
        try:
            for got, expected in zip(answers(case.model, arrays(inputs)), arrays(outputs), strict=True):
                got, expected = plain(got), plain(expected)
                assert got.shape == expected.shape and got.dtype.kind == expected.dtype.kind
                if expected.dtype.kind == "U":
                    assert got.tolist() == expected.tolist()
                else:
                    np.testing.assert_allclose(got.astype("f8"), expected.astype("f8"), rtol=1e-3, atol=1e-5)
        except Exception as error:
            return f"{case.name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def test_onnx_examples_are_answered_as_onnx_says():
    left_out = re.compile("|".join(LEFT_OUT))
    chosen = [case for case in cases() if not left_out.search(case.name)]
    covered = {node.op_type for case in chosen for node in case.model.graph.node}
    assert len(chosen) > 500
    assert len(covered & set(COUNTERPARTS)) > 110
    assert [text for text in map(problem, chosen) if text] == []
