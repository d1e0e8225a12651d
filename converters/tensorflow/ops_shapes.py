"""Counterparts that move, cut, join and index values, and those that make values from sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.tensorflow.graph import Last, Node, counterpart, first, known, must_know, rank_of

_LIMIT = (1 << 31) - 1


@counterpart("Constant")
def _constant(node: Node) -> Any:
    name, value = next(iter(node.attributes.items()))
    if name.startswith("sparse"):
        raise node.unsupported("a sparse value")
    if name in ("value", "value_string", "value_strings"):
        return np.asarray(value, dtype=object) if name != "value" else value
    return np.asarray(value, dtype=np.float32 if name.startswith("value_float") else np.int64)


@counterpart("ConstantOfShape")
def _constant_of_shape(node: Node, shape: Any) -> Any:
    value = node.get("value", np.zeros(1, np.float32)).reshape(())
    return tf.fill(tf.cast(shape, tf.int64), tf.constant(value))


def shape_of(value: Any) -> Any:
    """Sizes, int64: a numpy array where all are known, else a tensor."""
    if isinstance(value, np.ndarray):
        return np.array(value.shape, np.int64)
    if value.shape.is_fully_defined():
        return np.array(value.shape.as_list(), np.int64)
    return tf.shape(value, out_type=tf.int64)


@counterpart("Shape", layout="own")
def _shape(node: Node, x: Any) -> Any:
    rank = rank_of(x)
    if isinstance(x, Last):
        sizes = shape_of(x.tensor)
        sizes = (
            tf.gather(sizes, [0, rank - 1, *range(1, rank - 1)])
            if known(sizes) is None
            else np.array([sizes[0], sizes[-1], *sizes[1:-1]], np.int64)
        )
    else:
        sizes = shape_of(x)
    return sizes[slice(node.get("start", 0), node.get("end", None))]


@counterpart("Size")
def _size(node: Node, x: Any) -> Any:
    sizes = shape_of(x)
    return np.asarray(sizes.prod()) if isinstance(sizes, np.ndarray) else tf.reduce_prod(sizes)


@counterpart("Reshape")
def _reshape(node: Node, x: Any, shape: Any) -> Any:
    sizes = known(shape)
    if sizes is not None:
        sizes = sizes.tolist()
        if node.get("allowzero", 0) or 0 not in sizes:
            return tf.reshape(x, sizes)
        whole = shape_of(tf.convert_to_tensor(x))
        static = tf.convert_to_tensor(x).shape
        return tf.reshape(
            x, [n if n else (static[i] if static[i] is not None else whole[i]) for i, n in enumerate(sizes)]
        )
    if not node.get("allowzero", 0):
        x = tf.convert_to_tensor(x)
        count = min(shape.shape[0] or 0, x.shape.rank or 0)
        parts = [shape[i] for i in range(shape.shape[0])]
        fixed = [tf.get_static_value(part) for part in parts]
        parts[:count] = [shape_of(x)[i] if fixed[i] is not None and fixed[i] == 0 else parts[i] for i in range(count)]
        # Stacked from single sizes, so that those which are known stay known.
        shape = tf.stack(
            [part if value is None or value == 0 else value for part, value in zip(parts, fixed, strict=True)]
        )
    return tf.reshape(x, shape)


@counterpart("Flatten", layout="own")
def _flatten(node: Node, x: Any) -> Any:
    rank = rank_of(x)
    axis = node.get("axis", 1)
    axis = axis + rank if axis < 0 else axis
    if isinstance(x, Last) and axis == 1 and all(size == 1 for size in x.tensor.shape[1:-1]):
        x = x.tensor  # single pixels have no order
    x = tf.convert_to_tensor(first(x))
    if axis == 0:
        return tf.reshape(x, [1, -1])
    tail = x.shape[axis:]
    if tail.is_fully_defined():
        return tf.reshape(x, [-1, tail.num_elements()])
    sizes = shape_of(x)
    return tf.reshape(x, tf.stack([tf.reduce_prod(sizes[:axis]), tf.reduce_prod(sizes[axis:])]))


def axes_of(node: Node, axes: Any) -> list[int] | None:
    """An operator's axes: an attribute in old models, an input in new ones; None where it was left out."""
    if axes is None:
        stated: list[int] | None = node.get("axes")
        return stated
    return [int(axis) for axis in must_know(node, axes, "axes").ravel()]


@counterpart("Squeeze")
def _squeeze(node: Node, x: Any, axes: Any = None) -> Any:
    return tf.squeeze(x, axes_of(node, axes))


@counterpart("Unsqueeze")
def _unsqueeze(node: Node, x: Any, axes: Any = None) -> Any:
    added = axes_of(node, axes) or []
    rank = rank_of(x) + len(added)
    for axis in sorted(a % rank for a in added):
        x = tf.expand_dims(x, axis)
    return x


@counterpart("Transpose", layout="own")
def _transpose(node: Node, x: Any) -> Any:
    rank = rank_of(x)
    order = list(node.get("perm", range(rank)[::-1]))
    if isinstance(x, Last):
        lies = [0, rank - 1, *range(1, rank - 1)]  # where ONNX's axes lie
        lying = [lies[axis] for axis in order]
        return x.tensor if lying == list(range(rank)) else tf.transpose(x.tensor, lying)
    if rank > 2 and order == [0, rank - 1, *range(1, rank - 1)] and not isinstance(x, np.ndarray):
        return Last(x)
    return tf.transpose(x, order)


@counterpart("Concat", layout="own")
def _concat(node: Node, *values: Any) -> Any:
    rank = rank_of(values[0])
    axis = node.get("axis", 1)
    axis = axis + rank if axis < 0 else axis
    if rank > 2 and all(isinstance(value, Last) for value in values):
        return Last(tf.concat([value.tensor for value in values], last_axis(axis, rank)))
    return tf.concat([node.weight(v) if isinstance(v, np.ndarray) else first(v) for v in values], axis)


def last_axis(axis: int, rank: int) -> int:
    """Where ONNX's axis lies in a `Last` tensor."""
    axis = axis + rank if axis < 0 else axis
    return {0: 0, 1: rank - 1}.get(axis, axis - 1)


@counterpart("Split")
def _split(node: Node, x: Any, sizes: Any = None) -> Any:
    axis = node.get("axis", 0)
    parts = node.get("split") if sizes is None else must_know(node, sizes, "sizes").tolist()
    if parts is None:
        count = node.get("num_outputs", node.outputs)
        total = tf.convert_to_tensor(x).shape[axis]
        if total is None:
            raise node.unsupported("an axis whose size depends on the inputs")
        part = -(-total // count)
        parts = [min(part, total - part * i) for i in range(count)]
    return tf.split(x, parts, axis)


@counterpart("Slice")
def _slice(node: Node, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    starts, ends = (
        np.asarray(node.get(name), np.int64) if value is None else value
        for name, value in (("starts", starts), ("ends", ends))
    )
    rank = rank_of(x)
    stated = axes_of(node, axes)
    taken = list(range(starts.shape[0])) if stated is None else stated
    stride = [1] * len(taken) if steps is None else must_know(node, steps, "steps").tolist()
    cuts = [slice(None)] * rank
    for i, axis in enumerate(taken):
        cuts[axis] = slice(_bound(starts, i), _bound(ends, i), int(np.clip(stride[i], -_LIMIT, _LIMIT)))
    return tf.convert_to_tensor(x)[tuple(cuts)]


def _bound(bounds: Any, i: int) -> Any:
    value = known(bounds[i])
    if value is not None:
        return int(np.clip(int(value), -_LIMIT, _LIMIT))
    return tf.cast(tf.clip_by_value(tf.cast(bounds[i], tf.int64), -_LIMIT, _LIMIT), tf.int32)


@counterpart("Expand")
def _expand(node: Node, x: Any, shape: Any) -> Any:
    x = tf.convert_to_tensor(x)
    sizes = known(shape)
    if x.shape.is_fully_defined() and sizes is not None:
        return tf.broadcast_to(x, np.broadcast_shapes(tuple(x.shape), tuple(sizes.tolist())))
    return tf.broadcast_to(x, tf.broadcast_dynamic_shape(tf.shape(x, out_type=tf.int64), tf.cast(shape, tf.int64)))


@counterpart("Tile")
def _tile(node: Node, x: Any, repeats: Any) -> Any:
    return tf.tile(x, repeats)


@counterpart("Gather")
def _gather(node: Node, x: Any, at: Any) -> Any:
    axis = node.get("axis", 0)
    index = known(at)
    if rank_of(x) == 1 and index is not None and index.ndim == 0:
        return tf.convert_to_tensor(x)[int(index)]  # of a shape, mostly: stays known where it is
    return tf.gather(x, _positive(at, x, axis), axis=axis)


def _positive(at: Any, x: Any, axis: int) -> Any:
    """Indices counted from the front; ONNX allows negative ones."""
    found = known(at)
    if found is not None and (found >= 0).all():
        return found
    size = tf.cast(tf.shape(x)[axis], tf.convert_to_tensor(at).dtype)
    return tf.where(tf.convert_to_tensor(at) < 0, at + size, at)


@counterpart("GatherElements")
def _gather_elements(node: Node, x: Any, at: Any) -> Any:
    axis = node.get("axis", 0) % rank_of(x)
    return tf.gather_nd(x, _grid(_positive(at, x, axis), axis))


@counterpart("ScatterElements", "Scatter")
def _scatter_elements(node: Node, x: Any, at: Any, updates: Any) -> Any:
    axis = node.get("axis", 0) % rank_of(x)
    return _scatter(node, x, _grid(_positive(at, x, axis), axis), updates)


def _grid(at: Any, axis: int) -> Any:
    """[d..., rank]: every index of `at`, with `at` itself in place of `axis`."""
    at = tf.cast(at, tf.int64)
    sizes = tf.shape(at, out_type=tf.int64)
    ranges = [tf.range(sizes[i]) for i in range(at.shape.rank)]
    grid = tf.meshgrid(*ranges, indexing="ij")
    grid[axis] = at
    return tf.stack(grid, -1)


@counterpart("GatherND")
def _gather_nd(node: Node, x: Any, at: Any) -> Any:
    batch = node.get("batch_dims", 0)
    return tf.gather_nd(x, _positive_nd(at, x, batch), batch_dims=batch)


@counterpart("ScatterND")
def _scatter_nd(node: Node, x: Any, at: Any, updates: Any) -> Any:
    return _scatter(node, x, _positive_nd(at, x, 0), updates)


def _positive_nd(at: Any, x: Any, batch: int) -> Any:
    at = tf.cast(at, tf.int64)
    sizes = tf.shape(x, out_type=tf.int64)[batch : batch + at.shape[-1]]
    return tf.where(at < 0, at + sizes, at)


def _scatter(node: Node, x: Any, at: Any, updates: Any) -> Any:
    reduction = node.get("reduction", "none")
    makers = {
        "none": tf.tensor_scatter_nd_update,
        "add": tf.tensor_scatter_nd_add,
        "max": tf.tensor_scatter_nd_max,
        "min": tf.tensor_scatter_nd_min,
    }
    if reduction not in makers:
        raise node.unsupported(f"reduction {reduction!r}")
    return makers[reduction](x, at, updates)


@counterpart("OneHot")
def _one_hot(node: Node, at: Any, depth: Any, values: Any) -> Any:
    size = tf.reshape(tf.cast(depth, tf.int64), [])
    at = tf.cast(at, tf.int64)
    hot = tf.one_hot(
        tf.where(at < 0, at + size, at),
        tf.cast(size, tf.int32),
        on_value=True,
        off_value=False,
        axis=node.get("axis", -1) % (at.shape.rank + 1),
        dtype=tf.bool,
    )
    return tf.where(hot, values[1], values[0])


@counterpart("Range")
def _range(node: Node, start: Any, limit: Any, delta: Any) -> Any:
    start, limit, delta = (tf.reshape(v, []) for v in (start, limit, delta))
    return tf.range(start, limit, delta)


@counterpart("NonZero")
def _non_zero(node: Node, x: Any) -> Any:
    return tf.transpose(tf.where(tf.cast(x, tf.bool)))


@counterpart("Compress")
def _compress(node: Node, x: Any, condition: Any) -> Any:
    axis = node.get("axis")
    x = tf.reshape(x, [-1]) if axis is None else x
    return tf.gather(x, tf.where(condition)[:, 0], axis=axis or 0)


@counterpart("Trilu")
def _trilu(node: Node, x: Any, k: Any = None) -> Any:
    x = tf.convert_to_tensor(x)
    rows, columns = (tf.range(tf.shape(x, out_type=tf.int64)[axis]) for axis in (-2, -1))
    distance = columns[None, :] - rows[:, None]
    shift = tf.constant(0, tf.int64) if k is None else tf.reshape(tf.cast(k, tf.int64), [])
    kept = distance >= shift if node.get("upper", 1) else distance <= shift
    return tf.where(kept, x, tf.zeros_like(x))


@counterpart("EyeLike")
def _eye_like(node: Node, x: Any) -> Any:
    from converters.tensorflow.ops_elements import cast_to

    sizes = tf.shape(x, out_type=tf.int64)
    hot = tf.range(sizes[0])[:, None] + node.get("k", 0) == tf.range(sizes[1])[None, :]
    return cast_to(node, hot, node.get("dtype")) if node.get("dtype") else tf.cast(hot, tf.as_dtype(x.dtype))


@counterpart("ReverseSequence")
def _reverse_sequence(node: Node, x: Any, lengths: Any) -> Any:
    return tf.reverse_sequence(x, lengths, seq_axis=node.get("time_axis", 0), batch_axis=node.get("batch_axis", 1))


@counterpart("If")
def _if(node: Node, condition: Any) -> Any:
    decided = known(condition)
    yes, no = node.get("then_branch"), node.get("else_branch")
    if decided is not None:
        return node.rebuild(yes if decided.reshape(()) else no)
    return tf.cond(tf.reshape(condition, []), lambda: node.rebuild(yes), lambda: node.rebuild(no))
