"""Counterparts of pooling, channels last.

The largest value of a window needs no special number around the edges: mirrored neighbours that the window holds
anyway change nothing, while a lowest number would ruin the ranges that full INT8 is quantised to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from converters.tensorflow.graph import Last, Node, counterpart
from converters.tensorflow.ops_spatial import channels_last, padded, spatial


@counterpart("GlobalAveragePool", "GlobalMaxPool", layout="own")
def _global(node: Node, x: Any) -> Any:
    x = channels_last(node, x)
    make = tf.reduce_mean if node.op == "GlobalAveragePool" else tf.reduce_max
    return Last(make(x, list(range(1, x.shape.rank - 1)), keepdims=True))


@counterpart("MaxPool", layout="own")
def _max_pool(node: Node, x: Any) -> Any:
    if node.outputs > 1:
        raise node.unsupported("indices")
    x = channels_last(node, x)
    window = list(node.get("kernel_shape"))
    count = len(window)
    strides, dilations = spatial(node, "strides", count), spatial(node, "dilations", count)
    if node.get("auto_pad", "NOTSET") in ("SAME_UPPER", "VALID"):
        padding = node.get("auto_pad").removesuffix("_UPPER")
    else:
        pairs, plain = _around(node, x, window, strides, dilations)
        if plain and padded(node, x, window, strides, dilations)[1] == "SAME":
            padding = "SAME"
        else:
            padding = "VALID"
            x = _extend(x, pairs, window, plain and set(dilations) == {1})
    if set(dilations) == {1}:
        return Last(tf.nn.max_pool(x, window, strides, padding))
    if padding == "SAME" or set(strides) == {1}:
        return Last(tf.nn.pool(x, window, "MAX", strides, padding, dilations=dilations))
    every = tf.nn.pool(x, window, "MAX", [1] * count, padding, dilations=dilations)
    return Last(every[(slice(None), *(slice(None, None, s) for s in strides))])


def _extend(x: Any, pairs: Sequence[Sequence[Any]], window: Sequence[int], plain: bool) -> Any:
    if plain and not any(before or after for before, after in pairs):
        return x
    around = [[0, 0], *pairs, [0, 0]]
    if plain and all(2 * max(pair) <= k for pair, k in zip(pairs, window, strict=True)):
        return tf.pad(x, around, mode="SYMMETRIC")
    return tf.pad(x, tf.stack(around), constant_values=x.dtype.min)


@counterpart("AveragePool", layout="own")
def _average_pool(node: Node, x: Any) -> Any:
    x = channels_last(node, x)
    window = list(node.get("kernel_shape"))
    count = len(window)
    strides, dilations = spatial(node, "strides", count), spatial(node, "dilations", count)

    def pool(values: Any, padding: str = "VALID") -> Any:
        return tf.nn.pool(values, window, "AVG", strides, padding, dilations=dilations)

    counting = node.get("count_include_pad", 0)
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "VALID") and not (counting and auto != "VALID"):
        return Last(pool(x, auto.removesuffix("_UPPER")))
    pairs, plain = _around(node, x, window, strides, dilations)
    if plain and not any(before or after for before, after in pairs):
        return Last(pool(x))
    if plain and not counting and padded(node, x, window, strides, dilations)[1] == "SAME":
        return Last(pool(x, "SAME"))
    around = tf.stack([[0, 0], *pairs, [0, 0]])
    sums = pool(tf.pad(x, around))
    if plain and counting:
        return Last(sums)
    ones = tf.ones_like(x[:1, ..., :1])
    if counting:  # padding that was asked for counts, what rounding up adds does not
        asked = _asked(node, count) if auto == "NOTSET" else pairs
        ones = tf.pad(ones, [[0, 0], *asked, [0, 0]], constant_values=1)
        around = tf.stack([[0, 0], *([b - q, a - r] for (b, a), (q, r) in zip(pairs, asked, strict=True)), [0, 0]])
    return Last(sums / pool(tf.pad(ones, around)))


def _asked(node: Node, count: int) -> list[list[int]]:
    flat = spatial(node, "pads", 2 * count, 0)
    return [[flat[i], flat[i + count]] for i in range(count)]


def _around(
    node: Node, x: Any, window: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[list[Any]], bool]:
    """Elements before and after each axis, and whether rounding up adds none to what was asked for."""
    count = len(window)
    auto = node.get("auto_pad", "NOTSET")
    sizes = [x.shape[i + 1] if x.shape[i + 1] is not None else tf.shape(x)[i + 1] for i in range(count)]
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    if auto.startswith("SAME"):
        pairs: list[list[Any]] = []
        for n, k, s in zip(sizes, reach, strides, strict=True):
            total = (-(-n // s) - 1) * s + k - n
            total = max(total, 0) if isinstance(total, int) else tf.maximum(total, 0)
            half = total // 2
            pairs.append([half, total - half] if auto == "SAME_UPPER" else [total - half, half])
        return pairs, all(isinstance(n, int) for n in sizes)
    pairs = [list(pair) for pair in _asked(node, count)] if auto == "NOTSET" else [[0, 0] for _ in range(count)]
    if not node.get("ceil_mode", 0):
        return pairs, True
    plain = True
    for i, (n, k, s) in enumerate(zip(sizes, reach, strides, strict=True)):
        before, after = pairs[i]
        span = n + before + after - k
        steps = -(-span // s)
        # A window that would begin beyond the elements and the padding before them is left out.
        late = steps * s >= n + before
        steps = steps - int(late) if isinstance(late, bool) else steps - tf.cast(late, steps.dtype)
        extra = steps * s - span
        if isinstance(extra, int):
            extra = max(extra, 0)
            plain = plain and extra == 0
        else:
            extra, plain = tf.maximum(extra, 0), False
        pairs[i][1] = after + extra
    return pairs, plain
