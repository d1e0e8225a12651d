"""Counterparts that work element by element, with broadcasting: arithmetic, comparison, activations, casts."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from onnx import helper

from converters.tensorflow.graph import Node, counterpart, known

_PLAIN: dict[str, Callable[..., Any]] = {
    "Abs": tf.abs,
    "Acos": tf.acos,
    "Acosh": tf.acosh,
    "Add": tf.add,
    "And": tf.logical_and,
    "Asin": tf.asin,
    "Asinh": tf.asinh,
    "Atan": tf.atan,
    "Atanh": tf.atanh,
    "BitwiseAnd": tf.bitwise.bitwise_and,
    "BitwiseNot": tf.bitwise.invert,
    "BitwiseOr": tf.bitwise.bitwise_or,
    "BitwiseXor": tf.bitwise.bitwise_xor,
    "Ceil": tf.math.ceil,
    "Cos": tf.cos,
    "Cosh": tf.cosh,
    "Equal": tf.equal,
    "Erf": tf.math.erf,
    "Exp": tf.exp,
    "Floor": tf.floor,
    "Greater": tf.greater,
    "GreaterOrEqual": tf.greater_equal,
    "HardSwish": lambda x: x * tf.nn.relu6(x + 3) * (1 / 6),
    "Identity": tf.identity,
    "IsNaN": tf.math.is_nan,
    "Less": tf.less,
    "LessOrEqual": tf.less_equal,
    "Log": tf.math.log,
    "Mish": lambda x: x * tf.tanh(tf.math.softplus(x)),
    "Mul": tf.multiply,
    "Neg": tf.negative,
    "Not": tf.logical_not,
    "Or": tf.logical_or,
    "Reciprocal": lambda x: 1 / tf.convert_to_tensor(x),
    "Relu": tf.nn.relu,
    "Round": tf.round,
    "Sigmoid": tf.sigmoid,
    "Sign": tf.sign,
    "Sin": tf.sin,
    "Sinh": tf.sinh,
    "Softplus": tf.math.softplus,
    "Softsign": tf.nn.softsign,
    "Sqrt": tf.sqrt,
    "Sub": tf.subtract,
    "Tan": tf.tan,
    "Tanh": tf.tanh,
    "Where": tf.where,
    "Xor": tf.math.logical_xor,
}


def _plain(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda node, *inputs: make(*inputs)


for _name, _make in _PLAIN.items():
    counterpart(_name, layout="any")(_plain(_make))


@counterpart("Max", "Min", "Sum", "Mean", layout="any")
def _over_inputs(node: Node, *inputs: Any) -> Any:
    make = {"Max": tf.maximum, "Min": tf.minimum}.get(node.op, tf.add)
    total = reduce(make, inputs[1:], tf.convert_to_tensor(inputs[0]))
    return total / len(inputs) if node.op == "Mean" else total


@counterpart("Div", layout="any")
def _div(node: Node, x: Any, y: Any) -> Any:
    # Whole numbers are divided towards zero.
    return tf.divide(x, y) if _floating(x) else tf.truncatediv(x, y)


@counterpart("Mod", layout="any")
def _mod(node: Node, x: Any, y: Any) -> Any:
    return tf.math.floormod(x, y) if not node.get("fmod", 0) else tf.truncatemod(x, y)


@counterpart("Pow", layout="any")
def _pow(node: Node, x: Any, y: Any) -> Any:
    base, power = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    if not base.dtype.is_floating and power.dtype.is_floating:
        return tf.cast(tf.pow(tf.cast(base, power.dtype), power), base.dtype)
    return tf.pow(base, tf.cast(power, base.dtype))


@counterpart("Clip", layout="any")
def _clip(node: Node, x: Any, low: Any = None, high: Any = None) -> Any:
    low = low if low is not None else node.get("min")
    high = high if high is not None else node.get("max")
    limits = [
        None if limit is None else known(np.asarray(limit) if isinstance(limit, float) else limit)
        for limit in (low, high)
    ]
    if limits == [0.0, 6.0]:
        return tf.nn.relu6(x)  # TFLite fuses it into the layer before
    x = x if low is None else tf.maximum(x, tf.cast(low, _dtype(x)))
    return x if high is None else tf.minimum(x, tf.cast(high, _dtype(x)))


@counterpart("IsInf", layout="any")
def _is_inf(node: Node, x: Any) -> Any:
    x = tf.convert_to_tensor(x)
    above = tf.logical_and(tf.math.is_inf(x), x > 0) if node.get("detect_positive", 1) else tf.zeros_like(x, tf.bool)
    below = tf.logical_and(tf.math.is_inf(x), x < 0) if node.get("detect_negative", 1) else tf.zeros_like(x, tf.bool)
    return tf.logical_or(above, below)


@counterpart("BitShift", layout="any")
def _bit_shift(node: Node, x: Any, y: Any) -> Any:
    left = node.get("direction") == "LEFT"
    return tf.bitwise.left_shift(x, y) if left else tf.bitwise.right_shift(x, y)


@counterpart("Gelu", layout="any")
def _gelu(node: Node, x: Any) -> Any:
    return tf.nn.gelu(x, approximate=node.get("approximate", "none") == "tanh")


@counterpart("HardSigmoid", layout="any")
def _hard_sigmoid(node: Node, x: Any) -> Any:
    return tf.clip_by_value(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)


@counterpart("Elu", "Celu", layout="any")
def _elu(node: Node, x: Any) -> Any:
    alpha = node.get("alpha", 1.0)
    if alpha == 1:
        return tf.nn.elu(x)
    scaled = tf.math.expm1(tf.minimum(x, 0) / (alpha if node.op == "Celu" else 1))
    return tf.maximum(x, 0) + alpha * scaled


@counterpart("Selu", layout="any")
def _selu(node: Node, x: Any) -> Any:
    alpha, gamma = node.get("alpha", 1.6732632), node.get("gamma", 1.0507010)
    return gamma * (tf.maximum(x, 0) + alpha * tf.math.expm1(tf.minimum(x, 0)))


@counterpart("LeakyRelu", layout="any")
def _leaky_relu(node: Node, x: Any) -> Any:
    return tf.nn.leaky_relu(x, node.get("alpha", 0.01))


@counterpart("PRelu", layout="any")
def _prelu(node: Node, x: Any, slope: Any) -> Any:
    return tf.maximum(x, 0) + slope * tf.minimum(x, 0)


@counterpart("ThresholdedRelu", layout="any")
def _thresholded_relu(node: Node, x: Any) -> Any:
    return tf.where(tf.convert_to_tensor(x) > node.get("alpha", 1.0), x, tf.zeros_like(x))


@counterpart("Shrink", layout="any")
def _shrink(node: Node, x: Any) -> Any:
    x = tf.convert_to_tensor(x)
    bias = tf.cast(node.get("bias", 0.0), x.dtype)
    edge = tf.cast(node.get("lambd", 0.5), x.dtype)
    return tf.where(x < -edge, x + bias, tf.where(x > edge, x - bias, tf.zeros_like(x)))


@counterpart("Swish", layout="any")
def _swish(node: Node, x: Any) -> Any:
    return x * tf.sigmoid(node.get("alpha", 1.0) * x)


@counterpart("Cast", layout="any")
def _cast(node: Node, x: Any) -> Any:
    return cast_to(node, x, node.get("to"))


@counterpart("CastLike", layout="any")
def _cast_like(node: Node, x: Any, like: Any) -> Any:
    return tf.cast(x, _dtype(like))


@counterpart("Dropout", layout="any")
def _dropout(node: Node, x: Any, ratio: Any = None, training: Any = None) -> Any:
    if training is not None and (known(training) is None or bool(known(training))):
        raise node.unsupported("training mode")
    return (tf.identity(x), tf.ones_like(x, tf.bool)) if node.outputs > 1 else tf.identity(x)


def cast_to(node: Node, x: Any, element: int) -> Any:
    """`x` as the ONNX element type `element`. Raises: ConversionFailed for types TensorFlow cannot compute with."""
    x = tf.convert_to_tensor(x)
    if element == onnx.TensorProto.STRING:
        return tf.strings.as_string(x) if x.dtype != tf.string else x
    wanted = dtype_of(node, element)
    if x.dtype == tf.string:
        return (
            tf.strings.to_number(x, wanted)
            if wanted in (tf.float32, tf.float64, tf.int32, tf.int64)
            else tf.cast(tf.strings.to_number(x, tf.float64), wanted)
        )
    return tf.cast(x, wanted)


def dtype_of(node: Node, element: int) -> tf.DType:
    """TensorFlow's type for an ONNX element type. Raises: ConversionFailed."""
    if element == onnx.TensorProto.BFLOAT16:
        return tf.bfloat16
    name = onnx.TensorProto.DataType.Name(element)
    if name.startswith(("FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2")):
        raise node.unsupported(f"type {name}")
    return tf.as_dtype(helper.tensor_dtype_to_np_dtype(element))


def _dtype(value: Any) -> tf.DType:
    return tf.as_dtype(value.dtype)


def _floating(value: Any) -> bool:
    return bool(_dtype(value).is_floating)
