"""Counterparts of resizing.

What TensorFlow's own kernels do the same way is left to them. Everything else is computed as the operator's definition
says, axis by axis: where each output element lies among the inputs, then the nearest, two or four neighbours.
Source: https://onnx.ai/onnx/operators/onnx__Resize.html
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.tensorflow.graph import Last, Node, counterpart, first, known, rank_of
from converters.tensorflow.ops_shapes import last_axis
from converters.tensorflow.ops_spatial import channels_last


@counterpart("Resize", layout="own")
def _resize(node: Node, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    if node.opset < 11:  # it took the scales as its second input
        roi, scales = None, roi
    mode = node.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric")
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if node.get("antialias", 0) or mode == "tf_crop_and_resize" or policy != "stretch":
        raise node.unsupported("antialias, cropping or a kept aspect ratio")
    if scales is not None and scales.shape == (0,):
        scales = None
    axes = [axis % rank_of(x) for axis in node.get("axes", range(rank_of(x)))]
    nearest = node.get("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor")
    return resized(node, x, axes, scales, sizes, mode, nearest)


@counterpart("Upsample", layout="own")
def _upsample(node: Node, x: Any, scales: Any = None) -> Any:
    scales = np.asarray(node.get("scales"), np.float32) if scales is None else scales
    return resized(node, x, list(range(rank_of(x))), scales, None, "asymmetric", "floor")


def resized(node: Node, x: Any, axes: list[int], scales: Any, sizes: Any, mode: str, nearest: str) -> Any:
    """`x` with other sizes along `axes`: by `scales`, or to `sizes`."""
    rank = rank_of(x)
    by_axis = _targets(x, axes, scales, sizes)
    moving = [axis for axis in axes if by_axis[axis] is not None]
    kind = node.get("mode", "nearest")
    if not moving:
        return x
    if rank == 4 and set(moving) <= {2, 3}:
        native = _native(node, x, by_axis, kind, mode, nearest)
        if native is not None:
            return Last(native)
    if kind not in ("nearest", "linear", "cubic"):
        raise node.unsupported(f"mode {kind!r}")
    tensor = x.tensor if isinstance(x, Last) else tf.convert_to_tensor(first(x))
    for axis in moving:
        at = last_axis(axis, rank) if isinstance(x, Last) else axis
        target, scale = by_axis[axis]
        tensor = _along(node, tensor, at, target, scale, kind, mode, nearest)
    return Last(tensor) if isinstance(x, Last) else tensor


def _targets(x: Any, axes: list[int], scales: Any, sizes: Any) -> dict[int, Any]:
    """Per axis (size, scale), or None where it stays as it is."""
    rank = rank_of(x)
    tensor = x.tensor if isinstance(x, Last) else tf.convert_to_tensor(x)
    found: dict[int, Any] = dict.fromkeys(range(rank))
    target: Any
    scale: Any
    for i, axis in enumerate(axes):
        at = last_axis(axis, rank) if isinstance(x, Last) else axis
        size = tensor.shape[at] if tensor.shape[at] is not None else tf.shape(tensor)[at]
        if scales is not None:
            stated = known(scales[i])
            if stated is not None and float(stated) == 1:
                continue
            scale = float(stated) if stated is not None else tf.cast(scales[i], tf.float32)
            if isinstance(size, int) and isinstance(scale, float):
                target = int(np.floor(size * scale + 1e-6))
            else:
                target = tf.cast(tf.floor(tf.cast(size, tf.float32) * scale + 1e-6), tf.int32)
        else:
            wanted = known(sizes[i])
            target = int(wanted) if wanted is not None else tf.cast(sizes[i], tf.int32)
            if isinstance(size, int) and size == target:
                continue
            scale = (
                target / size
                if isinstance(size, int) and isinstance(target, int)
                else tf.cast(target, tf.float32) / tf.cast(size, tf.float32)
            )
        found[axis] = (target, scale)
    return found


def _native(node: Node, x: Any, by_axis: dict[int, Any], kind: str, mode: str, nearest: str) -> Any:
    """By TensorFlow's own kernel, or None where it would compute something else."""
    whole = all(
        entry is None or (isinstance(entry[1], float) and float(entry[1]).is_integer()) for entry in by_axis.values()
    )
    x = channels_last(node, x)
    sizes = [x.shape[axis - 1] if by_axis[axis] is None else by_axis[axis][0] for axis in (2, 3)]
    sizes = [tf.shape(x)[i + 1] if size is None else size for i, size in enumerate(sizes)]
    raw = tf.raw_ops
    if x.dtype not in (tf.float32, tf.float16):
        return None
    if kind == "nearest" and mode == "asymmetric" and nearest == "floor" and whole:
        return raw.ResizeNearestNeighbor(images=x, size=tf.stack(sizes))
    if kind == "nearest" and mode == "half_pixel" and nearest.startswith("round") and whole:
        return raw.ResizeNearestNeighbor(images=x, size=tf.stack(sizes), half_pixel_centers=True)
    exact = whole or all(entry is None or isinstance(entry[0], int) for entry in by_axis.values())
    if kind != "linear" or not exact or x.dtype != tf.float32:
        return None
    sized = all(
        entry is None or (isinstance(n, int) and abs(n * entry[1] - entry[0]) < 1e-6)
        for entry, n in ((by_axis[2], x.shape[1]), (by_axis[3], x.shape[2]))
    )
    if mode == "align_corners":
        return raw.ResizeBilinear(images=x, size=tf.stack(sizes), align_corners=True)
    if mode in ("half_pixel", "asymmetric") and (sized or whole):
        return raw.ResizeBilinear(images=x, size=tf.stack(sizes), half_pixel_centers=mode == "half_pixel")
    return None


def _along(node: Node, x: Any, axis: int, target: Any, scale: Any, kind: str, mode: str, nearest: str) -> Any:
    size = tf.shape(x)[axis]
    length = tf.cast(size, tf.float32)
    at = _places(node, tf.cast(tf.range(target), tf.float32), length, tf.cast(target, tf.float32), scale, mode)
    if kind == "nearest":
        taken = {
            "round_prefer_floor": lambda: tf.math.ceil(at - 0.5),
            "round_prefer_ceil": lambda: tf.floor(at + 0.5),
            "floor": lambda: tf.floor(at),
            "ceil": lambda: tf.math.ceil(at),
        }[nearest]()
        return tf.gather(x, tf.clip_by_value(tf.cast(taken, tf.int32), 0, size - 1), axis=axis)
    below = tf.floor(at)
    share = at - below
    if kind == "linear":
        taps = {0: 1 - share, 1: share}
    else:
        taps = _cubic(share, node.get("cubic_coeff_a", -0.75))
    if kind == "cubic" and node.get("exclude_outside", 0):
        inside = {k: tf.cast((below + k >= 0) & (below + k < length), tf.float32) for k in taps}
        total = tf.add_n([taps[k] * inside[k] for k in taps])
        taps = {k: taps[k] * inside[k] / total for k in taps}
    spread = [-1 if i == axis else 1 for i in range(x.shape.rank)]
    kept = x.dtype
    x = tf.cast(x, tf.float32)
    parts = [
        tf.gather(x, tf.clip_by_value(tf.cast(below + k, tf.int32), 0, size - 1), axis=axis)
        * tf.reshape(weight, spread)
        for k, weight in taps.items()
    ]
    return tf.cast(tf.add_n(parts), kept)


def _places(node: Node, at: Any, length: Any, target: Any, scale: Any, mode: str) -> Any:
    """Where output elements `at` lie among the inputs."""
    if mode == "half_pixel":
        return (at + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        adjustment = target / (scale * length)
        return length / 2 * (1 - adjustment) + (at + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return tf.where(target > 1, (at + 0.5) / scale - 0.5, tf.zeros_like(at))
    if mode == "align_corners":
        return tf.where(target > 1, at * (length - 1) / tf.maximum(target - 1, 1), tf.zeros_like(at))
    if mode == "asymmetric":
        return at / scale
    raise node.unsupported(f"coordinates {mode!r}")


def _cubic(share: Any, a: float) -> dict[int, Any]:
    """Weights of the elements at -1, 0, 1 and 2 around a place: Keys' cubic convolution kernel."""

    def near(d: Any) -> Any:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Any) -> Any:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return {-1: far(share + 1), 0: near(share), 1: near(1 - share), 2: far(2 - share)}
