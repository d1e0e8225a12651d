"""Counterparts over whole axes: products, reductions, softmax, normalisation, sorting, quantisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.tensorflow.graph import Last, Node, counterpart, first, must_know, rank_of
from converters.tensorflow.ops_shapes import axes_of, last_axis


@counterpart("MatMul")
def _matmul(node: Node, x: Any, y: Any) -> Any:
    rank_x, rank_y = rank_of(x), rank_of(y)
    if rank_x == rank_y == 1:
        return tf.reduce_sum(tf.multiply(x, y))
    if rank_x == 1:
        return tf.squeeze(tf.matmul(tf.expand_dims(x, 0), y), -2)
    if rank_y == 1:
        return tf.linalg.matvec(x, y)
    return tf.matmul(x, y)


@counterpart("Gemm", layout="own")
def _gemm(node: Node, x: Any, y: Any, bias: Any = None) -> Any:
    x, y = first(x), first(y)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    x = tf.transpose(x) if node.get("transA", 0) else x
    if isinstance(y, np.ndarray):  # laid out once, now
        y = node.weight(np.ascontiguousarray(y.T) if node.get("transB", 0) else y)
        product = tf.matmul(_tensor(node, x), y)
    else:
        product = tf.matmul(_tensor(node, x), y, transpose_b=bool(node.get("transB", 0)))
    product = product if alpha == 1 else product * tf.cast(alpha, product.dtype)
    if bias is None:
        return product
    bias = _tensor(node, first(bias))
    return product + (bias if beta == 1 else bias * tf.cast(beta, product.dtype))


def _tensor(node: Node, value: Any) -> Any:
    return node.weight(value) if isinstance(value, np.ndarray) else value


@counterpart("Einsum")
def _einsum(node: Node, *values: Any) -> Any:
    return tf.einsum(node.get("equation").replace(" ", ""), *values)


_REDUCTIONS: dict[str, Any] = {
    "ReduceL1": lambda x, axes, keep: tf.reduce_sum(tf.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: tf.sqrt(tf.reduce_sum(tf.square(x), axes, keep)),
    "ReduceLogSum": lambda x, axes, keep: tf.math.log(tf.reduce_sum(x, axes, keep)),
    "ReduceLogSumExp": tf.reduce_logsumexp,
    "ReduceMax": lambda x, axes, keep: (tf.reduce_max if x.dtype != tf.bool else tf.reduce_any)(x, axes, keep),
    "ReduceMean": tf.reduce_mean,
    "ReduceMin": lambda x, axes, keep: (tf.reduce_min if x.dtype != tf.bool else tf.reduce_all)(x, axes, keep),
    "ReduceProd": tf.reduce_prod,
    "ReduceSum": tf.reduce_sum,
    "ReduceSumSquare": lambda x, axes, keep: tf.reduce_sum(tf.square(x), axes, keep),
}


@counterpart(*_REDUCTIONS, layout="own")
def _reduce(node: Node, x: Any, axes: Any = None) -> Any:
    make = _REDUCTIONS[node.op]
    keep = bool(node.get("keepdims", 1))
    taken = axes_of(node, axes)
    if not taken:
        if node.get("noop_with_empty_axes", 0):
            return x
        return make(tf.convert_to_tensor(first(x)), None, keep)
    rank = rank_of(x)
    taken = sorted(axis % rank for axis in taken)
    if isinstance(x, Last) and (keep or taken == list(range(2, rank))):
        reduced = make(x.tensor, [last_axis(axis, rank) for axis in taken], keep)
        return Last(reduced) if keep else reduced
    return make(tf.convert_to_tensor(first(x)), taken, keep)


@counterpart("ArgMax", "ArgMin")
def _arg(node: Node, x: Any) -> Any:
    axis, keep = node.get("axis", 0), node.get("keepdims", 1)
    make = tf.argmax if node.op == "ArgMax" else tf.argmin
    x = tf.convert_to_tensor(x)
    if node.get("select_last_index", 0):
        found = tf.shape(x, out_type=tf.int64)[axis] - 1 - make(tf.reverse(x, [axis]), axis)
    else:
        found = make(x, axis)
    return tf.expand_dims(found, axis) if keep else found


@counterpart("Softmax", "LogSoftmax", "Hardmax")
def _softmax(node: Node, x: Any) -> Any:
    x = tf.convert_to_tensor(x)
    if node.opset >= 13:
        return _over_axis(node, x, node.get("axis", -1))
    # Before opset 13 everything from `axis` on counts as one axis.
    axis = node.get("axis", 1) % x.shape.rank
    if axis == x.shape.rank - 1:
        return _over_axis(node, x, axis)
    sizes = tf.shape(x)
    flat = tf.reshape(x, tf.stack([tf.reduce_prod(sizes[:axis]), tf.reduce_prod(sizes[axis:])]))
    return tf.ensure_shape(tf.reshape(_over_axis(node, flat, 1), sizes), x.shape)


def _over_axis(node: Node, x: Any, axis: int) -> Any:
    if node.op == "Hardmax":
        return tf.one_hot(tf.argmax(x, axis), tf.shape(x)[axis], axis=axis, dtype=x.dtype)
    return tf.nn.softmax(x, axis) if node.op == "Softmax" else tf.nn.log_softmax(x, axis)


def _moments(x: Any, axes: list[int]) -> tuple[Any, Any]:
    """Mean and variance over `axes`, which stay.

    Not by tf.nn.moments: in its operators TensorFlow sees its own layer normalisation, whose epsilon is always 0.001.
    """
    mean = tf.reduce_mean(x, axes, keepdims=True)
    return mean, tf.reduce_mean(tf.square(x - mean), axes, keepdims=True)


@counterpart("LayerNormalization")
def _layer_normalization(node: Node, x: Any, scale: Any, bias: Any = None) -> Any:
    x = tf.convert_to_tensor(x)
    axes = list(range(node.get("axis", -1) % x.shape.rank, x.shape.rank))
    mean, variance = _moments(x, axes)
    inverse = tf.math.rsqrt(variance + tf.cast(node.get("epsilon", 1e-5), x.dtype))
    y = (x - mean) * inverse * scale
    y = y if bias is None else y + bias
    return (y, mean, inverse)[: max(1, node.outputs)]


@counterpart("RMSNormalization")
def _rms_normalization(node: Node, x: Any, scale: Any) -> Any:
    x = tf.convert_to_tensor(x)
    axes = list(range(node.get("axis", -1) % x.shape.rank, x.shape.rank))
    square = tf.reduce_mean(tf.square(x), axes, keepdims=True)
    return x * tf.math.rsqrt(square + tf.cast(node.get("epsilon", 1e-5), x.dtype)) * scale


@counterpart("InstanceNormalization", "GroupNormalization")
def _group_normalization(node: Node, x: Any, scale: Any, bias: Any) -> Any:
    x = tf.convert_to_tensor(x)
    rank, channels = x.shape.rank, x.shape[1]
    if channels is None:
        raise node.unsupported("a number of channels that depends on the inputs")
    groups = node.get("num_groups", channels)
    sizes = tf.shape(x)
    grouped = tf.reshape(x, tf.concat([[sizes[0], groups, channels // groups], sizes[2:]], 0))
    mean, variance = _moments(grouped, list(range(2, rank + 1)))
    y = (grouped - mean) * tf.math.rsqrt(variance + tf.cast(node.get("epsilon", 1e-5), x.dtype))
    if scale.shape[0] == groups != channels:  # opset 18 scaled groups, later ones scale channels
        y = y * tf.reshape(scale, [1, -1] + [1] * (rank - 1)) + tf.reshape(bias, [1, -1] + [1] * (rank - 1))
        return tf.ensure_shape(tf.reshape(y, sizes), x.shape)
    y = tf.ensure_shape(tf.reshape(y, sizes), x.shape)
    return y * tf.reshape(scale, [1, -1] + [1] * (rank - 2)) + tf.reshape(bias, [1, -1] + [1] * (rank - 2))


@counterpart("LpNormalization")
def _lp_normalization(node: Node, x: Any) -> Any:
    axis, power = node.get("axis", -1), node.get("p", 2)
    size = tf.reduce_sum(tf.abs(x), axis, True) if power == 1 else tf.sqrt(tf.reduce_sum(tf.square(x), axis, True))
    return tf.math.divide_no_nan(x, size)


@counterpart("MeanVarianceNormalization")
def _mean_variance(node: Node, x: Any) -> Any:
    mean, variance = _moments(tf.convert_to_tensor(x), node.get("axes", [0, 2, 3]))
    return (x - mean) / (tf.sqrt(variance) + 1e-9)


@counterpart("CumSum")
def _cumsum(node: Node, x: Any, axis: Any) -> Any:
    at = int(must_know(node, axis, "an axis").reshape(()))
    return tf.cumsum(x, at, exclusive=bool(node.get("exclusive", 0)), reverse=bool(node.get("reverse", 0)))


@counterpart("TopK")
def _top_k(node: Node, x: Any, k: Any = None) -> Any:
    x = tf.convert_to_tensor(x)
    axis = node.get("axis", -1) % x.shape.rank
    count = node.get("k") if k is None else tf.reshape(k, [])
    order = [i for i in range(x.shape.rank) if i != axis] + [axis]
    back = [order.index(i) for i in range(x.shape.rank)]
    turned = x if axis == x.shape.rank - 1 else tf.transpose(x, order)
    smallest = not node.get("largest", 1)
    if smallest and x.dtype.is_unsigned:
        raise node.unsupported(f"the smallest of {x.dtype.name}")
    values, at = tf.math.top_k(-turned if smallest else turned, tf.cast(count, tf.int32))
    values, at = (-values if smallest else values), tf.cast(at, tf.int64)
    return (values, at) if axis == x.shape.rank - 1 else (tf.transpose(values, back), tf.transpose(at, back))


def _per_axis(node: Node, x: Any, value: Any) -> Any:
    """Scale or zero point, shaped to meet `x`: one number, or one for each index of the axis."""
    if node.get("block_size", 0):
        raise node.unsupported("blocks")
    rank, count = rank_of(x), rank_of(value)
    if count == 0 or count > 1 or rank <= 1:
        return value
    if value.shape[0] == 1:
        return tf.reshape(value, [])
    axis = node.get("axis", 1) % rank
    return tf.reshape(value, [-1 if i == axis else 1 for i in range(rank)])


@counterpart("QuantizeLinear")
def _quantize(node: Node, x: Any, scale: Any, zero: Any = None) -> Any:
    from converters.tensorflow.ops_elements import dtype_of

    chosen = node.get("output_dtype", 0)
    wanted = tf.as_dtype(zero.dtype) if zero is not None else (dtype_of(node, chosen) if chosen else tf.uint8)
    if not wanted.is_integer:
        raise node.unsupported(f"type {wanted.name}")
    steps = tf.round(tf.cast(x, tf.float32) / tf.cast(_per_axis(node, x, scale), tf.float32))
    moved = steps if zero is None else steps + tf.cast(_per_axis(node, x, zero), tf.float32)
    return tf.cast(tf.clip_by_value(moved, float(wanted.min), float(wanted.max)), wanted)


@counterpart("DequantizeLinear")
def _dequantize(node: Node, x: Any, scale: Any, zero: Any = None) -> Any:
    kind = tf.as_dtype(scale.dtype)
    if not tf.as_dtype(x.dtype).is_integer:
        raise node.unsupported(f"type {tf.as_dtype(x.dtype).name}")
    steps = tf.cast(x, kind)
    steps = steps if zero is None else steps - tf.cast(_per_axis(node, x, zero), kind)
    return steps * _per_axis(node, x, scale)


@counterpart("DynamicQuantizeLinear")
def _dynamic_quantize(node: Node, x: Any) -> Any:
    low, high = tf.minimum(tf.reduce_min(x), 0.0), tf.maximum(tf.reduce_max(x), 0.0)
    scale = tf.where(high > low, (high - low) / 255.0, 1.0)
    zero = tf.clip_by_value(tf.round(-low / scale), 0.0, 255.0)
    steps = tf.clip_by_value(tf.round(x / scale) + zero, 0.0, 255.0)
    return tf.cast(steps, tf.uint8), scale, tf.cast(zero, tf.uint8)


@counterpart("MatMulInteger")
def _matmul_integer(node: Node, x: Any, y: Any, zero_x: Any = None, zero_y: Any = None) -> Any:
    # Products of bytes are whole numbers that float64 holds exactly, and its product is the fast one.
    left, right = tf.cast(x, tf.float64), tf.cast(y, tf.float64)
    if zero_x is not None:
        shift = tf.cast(zero_x, tf.float64)
        left -= shift if rank_of(zero_x) != 1 or zero_x.shape[0] == 1 else shift[:, None]
    if zero_y is not None:
        right -= tf.cast(zero_y, tf.float64)
    return tf.cast(tf.matmul(left, right), tf.int32)
