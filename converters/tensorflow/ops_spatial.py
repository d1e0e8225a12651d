"""Counterparts over images, volumes and signals: convolution, normalisation by channel, padding, depth and space.

All of them work channels last and answer so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from converters.tensorflow.graph import Last, Node, counterpart, first, known, must_know, rank_of
from converters.tensorflow.ops_shapes import last_axis

_NAMES = {1: "NWC", 2: "NHWC", 3: "NDHWC"}


def channels_last(node: Node, value: Any) -> Any:
    """The tensor behind a value, channels last."""
    if isinstance(value, Last):
        return value.tensor
    rank = rank_of(value)
    value = node.weight(value) if isinstance(value, np.ndarray) else value
    return tf.transpose(value, [0, *range(2, rank), 1])


def spatial(node: Node, name: str, count: int, default: int = 1) -> list[int]:
    """An attribute with one number for each spatial axis."""
    return list(node.get(name) or [default] * count)


@counterpart("Conv", layout="own")
def _conv(node: Node, x: Any, w: Any, bias: Any = None) -> Any:
    x = channels_last(node, x)
    count = x.shape.rank - 2
    weights = must_know_weights(node, w)
    groups = node.get("group", 1)
    x = _with_channels(x, groups * weights.shape[1])
    strides, dilations = spatial(node, "strides", count), spatial(node, "dilations", count)
    x, padding = padded(node, x, list(weights.shape[2:]), strides, dilations)
    laid = np.ascontiguousarray(np.moveaxis(weights, (0, 1), (-1, -2)))  # [k..., in, out]
    if groups == 1:
        y = tf.nn.convolution(x, node.weight(laid), strides, padding, _NAMES.get(count, ""), dilations)
    elif count == 2 and weights.shape[1] == 1 and groups == x.shape[-1] and _depthwise(strides, dilations):
        # [k, k, 1, groups x multiplier] -> [k, k, groups, multiplier]
        deep = laid.reshape(*laid.shape[:2], groups, -1)
        y = tf.nn.depthwise_conv2d(x, node.weight(deep), [1, *strides, 1], padding, dilations=dilations)
    else:
        pieces = zip(tf.split(x, groups, -1), np.split(laid, groups, -1), strict=True)
        y = tf.concat(
            [
                tf.nn.convolution(a, node.weight(np.ascontiguousarray(b)), strides, padding, _NAMES[count], dilations)
                for a, b in pieces
            ],
            -1,
        )
    return Last(y if bias is None else tf.nn.bias_add(y, bias))


def _with_channels(x: Any, channels: int) -> Any:
    """`x` with its number of channels stated where it is not: TFLite has no convolution of an unknown number."""
    sizes = x.shape[:-1].as_list()
    if x.shape[-1] is not None or sizes.count(None) > 1:
        return x
    return tf.reshape(x, [*(-1 if size is None else size for size in sizes), channels])


def must_know_weights(node: Node, w: Any) -> np.ndarray:
    """Weights as an array. Raises: ConversionFailed if they are computed from the inputs, or of an unknown rank."""
    weights = must_know(node, w, "weights")
    if weights.ndim - 2 not in _NAMES:
        raise node.unsupported(f"{weights.ndim - 2} spatial axes")
    return weights


def _depthwise(strides: Sequence[int], dilations: Sequence[int]) -> bool:
    return len(set(strides)) == 1 and (set(dilations) == {1} or set(strides) == {1})


def padded(
    node: Node, x: Any, window: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[Any, str]:
    """`x` with what TensorFlow's own padding cannot do put around it, and the padding that is left to TensorFlow."""
    auto = node.get("auto_pad", "NOTSET")
    if auto == "SAME_UPPER":
        return x, "SAME"
    if auto == "VALID":
        return x, "VALID"
    sizes = x.shape[1:-1].as_list()
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    if auto == "SAME_LOWER":
        pairs = [_same(node, n, k, s)[::-1] for n, k, s in zip(sizes, reach, strides, strict=True)]
    else:
        count = len(window)
        flat = spatial(node, "pads", 2 * count, 0)
        pairs = list(zip(flat[:count], flat[count:], strict=True))
    if not any(before or after for before, after in pairs):
        return x, "VALID"
    own = [
        (s == 1 and before == after and before + after == k - 1)
        or (n is not None and (before, after) == _same(node, n, k, s))
        for (before, after), n, k, s in zip(pairs, sizes, reach, strides, strict=True)
    ]
    if all(own):
        return x, "SAME"
    return tf.pad(x, [(0, 0), *pairs, (0, 0)]), "VALID"


def _same(node: Node, size: int | None, reach: int, stride: int) -> tuple[int, int]:
    """What TensorFlow's "SAME" puts before and after `size` elements."""
    if size is None:
        raise node.unsupported("auto_pad SAME_LOWER on a size that depends on the inputs")
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


@counterpart("ConvTranspose", layout="own")
def _conv_transpose(node: Node, x: Any, w: Any, bias: Any = None) -> Any:
    x = channels_last(node, x)
    count = x.shape.rank - 2
    weights = must_know_weights(node, w)
    strides, window = spatial(node, "strides", count), list(weights.shape[2:])
    if set(spatial(node, "dilations", count)) != {1}:
        raise node.unsupported("dilations")
    groups = node.get("group", 1)
    sizes = [_size(x, i + 1) for i in range(count)]
    full = [(n - 1) * s + k for n, s, k in zip(sizes, strides, window, strict=True)]
    before, after = _crop(node, sizes, strides, window)
    # TensorFlow's result before cropping; what output_padding asks for beyond it is zero (and the bias).
    pieces = []
    inputs = tf.split(x, groups, -1) if groups > 1 else [x]
    for piece, part in zip(inputs, np.split(weights, groups, 0), strict=True):
        laid = np.ascontiguousarray(np.moveaxis(part, (0, 1), (-1, -2)))  # [k..., out, in]
        shape = tf.stack([tf.shape(piece)[0], *full, laid.shape[-2]])
        pieces.append(tf.nn.conv_transpose(piece, node.weight(laid), shape, strides, "VALID", _NAMES[count]))
    y = tf.concat(pieces, -1) if len(pieces) > 1 else pieces[0]
    grow = [max(-a, 0) if isinstance(a, int) else tf.maximum(-a, 0) for a in after]
    if not all(isinstance(g, int) and g == 0 for g in grow):
        y = tf.pad(y, [[0, 0], *([0, g] for g in grow), [0, 0]])
    cuts = [
        slice(b, f - a if not isinstance(a, int) or a >= 0 else None)
        for b, a, f in zip(before, after, full, strict=True)
    ]
    y = y[(slice(None), *cuts)]
    return Last(y if bias is None else tf.nn.bias_add(y, bias))


def _size(x: Any, axis: int) -> Any:
    return x.shape[axis] if x.shape[axis] is not None else tf.shape(x)[axis]


def _crop(
    node: Node, sizes: Sequence[Any], strides: Sequence[int], window: Sequence[int]
) -> tuple[list[Any], list[Any]]:
    """What is cut off before and after each axis of a full transposed convolution; below zero: what is added."""
    count = len(window)
    extra = spatial(node, "output_padding", count, 0)
    auto, stated = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    if stated or auto.startswith("SAME"):
        wanted = list(stated)[-count:] if stated else [n * s for n, s in zip(sizes, strides, strict=True)]
        full = [(n - 1) * s + k for n, s, k in zip(sizes, strides, window, strict=True)]
        total = [_above_zero(f + e - t) for f, e, t in zip(full, extra, wanted, strict=True)]
        before = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total]
        return before, [f - t - b for f, t, b in zip(full, wanted, before, strict=True)]
    flat = spatial(node, "pads", 2 * count, 0) if auto != "VALID" else [0] * 2 * count
    return flat[:count], [a - e for a, e in zip(flat[count:], extra, strict=True)]


def _above_zero(value: Any) -> Any:
    return max(value, 0) if isinstance(value, int) else tf.maximum(value, 0)


@counterpart("BatchNormalization", layout="own")
def _batch_normalization(node: Node, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    if node.get("training_mode", 0) or node.outputs > 1:
        raise node.unsupported("training mode")
    epsilon = node.get("epsilon", 1e-5)
    if all(known(value) is not None for value in (scale, bias, mean, variance)):
        scale, bias, mean, variance = (known(value) for value in (scale, bias, mean, variance))
        factor = (scale / np.sqrt(variance + epsilon)).astype(scale.dtype)
        shift = (bias - mean * factor).astype(bias.dtype)
    else:
        factor = scale * tf.math.rsqrt(variance + epsilon)
        shift = bias - mean * factor
    rank = rank_of(x)
    if isinstance(x, Last):
        return Last(x.tensor * factor + shift)
    spread = [-1] + [1] * (rank - 2)
    return first(x) * tf.reshape(factor, spread) + tf.reshape(shift, spread)


@counterpart("LRN", layout="own")
def _lrn(node: Node, x: Any) -> Any:
    size = node.get("size")
    if size % 2 == 0 or rank_of(x) != 4:
        raise node.unsupported(f"size {size} on {rank_of(x)} dimensions")
    alpha = node.get("alpha", 1e-4) / size
    x = channels_last(node, x)
    return Last(tf.nn.local_response_normalization(x, size // 2, node.get("bias", 1.0), alpha, node.get("beta", 0.75)))


@counterpart("DepthToSpace", "SpaceToDepth", layout="own")
def _depth(node: Node, x: Any) -> Any:
    block = node.get("blocksize")
    x = channels_last(node, x)
    swapped = node.get("mode", "DCR") == "CRD"  # TensorFlow counts blocks before channels
    if node.op == "SpaceToDepth":
        y = tf.nn.space_to_depth(x, block)
        order = np.arange(y.shape[-1]).reshape(block, block, -1).transpose(2, 0, 1).ravel()
        return Last(tf.gather(y, order, axis=-1) if swapped else y)
    order = np.arange(x.shape[-1]).reshape(-1, block, block).transpose(1, 2, 0).ravel()
    return Last(tf.nn.depth_to_space(tf.gather(x, order, axis=-1) if swapped else x, block))


@counterpart("Pad", layout="own")
def _pad(node: Node, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    rank = rank_of(x)
    flat = np.asarray(node.get("pads"), np.int64) if pads is None else pads
    taken = list(range(rank)) if axes is None else (must_know(node, axes, "axes") % rank).tolist()
    count = len(taken)
    pairs: list[Any] = [[0, 0] for _ in range(rank)]
    for i, axis in enumerate(taken):
        pairs[axis] = [_number(flat[i]), _number(flat[i + count])]
    fill = node.get("value", 0) if value is None else value
    mode = node.get("mode", "constant")
    if isinstance(x, Last):
        order = sorted(range(rank), key=lambda axis: last_axis(axis, rank))
        return Last(_surround(node, x.tensor, [pairs[axis] for axis in order], mode, fill))
    return _surround(node, tf.convert_to_tensor(x), pairs, mode, fill)


def _number(value: Any) -> Any:
    found = known(value)
    return int(found) if found is not None else tf.cast(value, tf.int32)


def _surround(node: Node, x: Any, pairs: Sequence[Sequence[Any]], mode: str, fill: Any) -> Any:
    numbers = [n for pair in pairs for n in pair]
    if all(isinstance(n, int) for n in numbers):
        cuts = tuple(slice(max(-b, 0), -max(-a, 0) or None) for b, a in pairs)
        x = x[cuts] if any(n < 0 for n in numbers) else x
        pairs = [[max(b, 0), max(a, 0)] for b, a in pairs]
        if not any(n > 0 for n in numbers):
            return x
    if mode == "constant":
        return tf.pad(x, tf.stack(pairs), constant_values=tf.cast(tf.reshape(fill, []), x.dtype))
    if mode == "reflect":
        return tf.pad(x, tf.stack(pairs), mode="REFLECT")
    if mode not in ("edge", "wrap"):
        raise node.unsupported(f"mode {mode!r}")
    for axis, (before, after) in enumerate(pairs):
        if isinstance(before, int) and before == after == 0:
            continue
        size = tf.shape(x)[axis]
        at = tf.range(-before, size + after)
        at = tf.clip_by_value(at, 0, size - 1) if mode == "edge" else tf.math.floormod(at, size)
        x = tf.gather(x, at, axis=axis)
    return x
