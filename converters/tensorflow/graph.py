"""An ONNX graph rebuilt of TensorFlow's operations.

Each value on the way is one of three kinds:

- known: a numpy array. Whatever depends on known values only is computed at once, so that shape arithmetic disappears;
- a tensor in ONNX's own layout;
- `Last`: a tensor whose channels lie last, though ONNX counts them second. TensorFlow's convolutions work on that
  layout only, and element by element operations do not care, so a convolutional network is transposed once at its
  beginning and once at its end, not around every layer.

Large weights become variables of the module: a graph with constants inside ends at 2 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import onnx
import tensorflow as tf
from onnx import helper, numpy_helper

from cluster.errors import ConversionFailed, ServingError
from converters.onnx.failures import brief

VARIABLE_BYTES = 1024  # larger arrays become variables

Layout = Literal["first", "any", "own"]
Made = TypeVar("Made", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Last:
    """A tensor [n, d..., c] that stands for ONNX's [n, c, d...]."""

    tensor: Any

    def first(self) -> Any:
        rank = self.tensor.shape.rank
        return tf.transpose(self.tensor, [0, rank - 1, *range(1, rank - 1)])


@dataclass(frozen=True, slots=True)
class Node:
    """What an operation's counterpart is told besides its inputs.

    Attributes:
        op: The operator's name.
        opset: Version of ONNX's operators that the model uses.
        attributes: As Python values; tensors as numpy arrays, subgraphs as `GraphProto`.
        outputs: How many outputs are wanted, counted to the last one that has a name.
        rebuild: Outputs of a subgraph, which sees the values around it.
        weight: A tensor for an array, by way of a variable if it is large.
    """

    op: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: int
    rebuild: Callable[[onnx.GraphProto], list[Any]]
    weight: Callable[[np.ndarray], Any]

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def unsupported(self, what: str) -> ConversionFailed:
        return ConversionFailed(f"{self.op} with {what} has no counterpart in TensorFlow")


@dataclass(frozen=True, slots=True)
class Counterpart:
    """How TensorFlow does what an ONNX operator does.

    `layout`: "first" wants inputs as ONNX has them; "any" works element by element, with broadcasting, on either
    layout; "own" is given `Last` values and large arrays as they are, and says by its result which layout it made.
    """

    make: Callable[..., Any]
    layout: Layout


COUNTERPARTS: dict[str, Counterpart] = {}


def counterpart(*names: str, layout: Layout = "first") -> Callable[[Made], Made]:
    """Registers `make(node, *inputs)` for these operators. Left out inputs are None; one output needs no tuple."""

    def register(make: Made) -> Made:
        for name in names:
            COUNTERPARTS[name] = Counterpart(make, layout)
        return make

    return register


def known(value: Any) -> np.ndarray | None:
    """The value where it does not depend on the model's inputs."""
    if isinstance(value, np.ndarray):
        return value
    if value is None or isinstance(value, Last):
        return None
    found = tf.get_static_value(value)
    return None if found is None else np.asarray(found)


def must_know(node: Node, value: Any, what: str) -> np.ndarray:
    """As `known`. Raises: ConversionFailed if it depends on the model's inputs."""
    found = known(value)
    if found is None:
        raise node.unsupported(f"{what} that depends on the inputs")
    return found


def first(value: Any) -> Any:
    """The value in ONNX's own layout."""
    return value.first() if isinstance(value, Last) else value


def rank_of(value: Any) -> int:
    """How many dimensions it has. Raises: ConversionFailed if only a run could tell."""
    if isinstance(value, np.ndarray):
        return value.ndim
    rank = (value.tensor if isinstance(value, Last) else value).shape.rank
    if rank is None:
        raise ConversionFailed("a tensor's number of dimensions depends on the inputs")
    return int(rank)


class Rebuilding:
    """The values of one model while its nodes are rebuilt, and the variables its weights became."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.variables: list[tf.Variable] = []
        self._weights: dict[int, tuple[np.ndarray, Any]] = {}  # by id; the array is kept, so that ids stay its own

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors by output name. Raises: ConversionFailed, naming the node."""
        self._weights.clear()
        values = self._evaluate(self._graph, dict(inputs))
        return {
            output.name: tf.identity(tf.convert_to_tensor(first(values[output.name]))) for output in self._graph.output
        }

    def _evaluate(self, graph: onnx.GraphProto, values: dict[str, Any]) -> dict[str, Any]:
        for tensor in graph.initializer:
            values[tensor.name] = numpy_helper.to_array(tensor)
        for proto in graph.node:
            arguments = [values[name] if name else None for name in proto.input]
            try:
                results = self._apply(proto, arguments, values)
            except ServingError as error:
                raise ConversionFailed(f"node {title(proto)}: {error.message}") from None
            except Exception as error:  # TensorFlow raises many kinds while it infers shapes
                raise ConversionFailed(f"node {title(proto)}: {type(error).__name__}: {brief(error)}") from None
            values.update((name, result) for name, result in zip(proto.output, results, strict=False) if name)
        return values

    def _apply(self, proto: onnx.NodeProto, arguments: list[Any], values: Mapping[str, Any]) -> Sequence[Any]:
        entry = COUNTERPARTS[proto.op_type]
        wanted = max((i + 1 for i, name in enumerate(proto.output) if name), default=0)

        def rebuild(graph: onnx.GraphProto) -> list[Any]:
            inner = self._evaluate(graph, dict(values))
            return [first(inner[output.name]) for output in graph.output]

        node = Node(proto.op_type, self._opset, attributes_of(proto), wanted, rebuild, self._weight)
        fixed = all(value is None or isinstance(value, np.ndarray) for value in arguments)
        if fixed and not any(isinstance(value, onnx.GraphProto) for value in node.attributes.values()):
            with tf.init_scope():  # leaves the graph: computed now
                return [_numpy(first(value)) for value in _several(entry.make(node, *arguments))]
        if entry.layout == "own":
            return _several(entry.make(node, *arguments))
        if entry.layout == "any" and any(isinstance(value, Last) for value in arguments):
            moved = channels_last(arguments)
            if moved is not None:
                return [Last(value) for value in _several(entry.make(node, *map(self._tensor, moved)))]
        return _several(entry.make(node, *(self._tensor(first(value)) for value in arguments)))

    def _tensor(self, value: Any) -> Any:
        return self._weight(value) if isinstance(value, np.ndarray) else value

    def _weight(self, array: np.ndarray) -> Any:
        if array.nbytes <= VARIABLE_BYTES or array.dtype == object:
            return array
        if id(array) not in self._weights:
            # TensorFlow traces twice where variables are made; each trace asks for the same weights in the same order.
            place = len(self._weights)
            if place == len(self.variables):
                with tf.init_scope():
                    self.variables.append(tf.Variable(array, trainable=False, name=f"weight_{place}"))
            self._weights[id(array)] = (array, self.variables[place])
        return tf.convert_to_tensor(self._weights[id(array)][1])


def channels_last(arguments: Sequence[Any]) -> list[Any] | None:
    """Inputs of an element by element operation, channels last; None if they do not all lend themselves to it."""
    rank = max(rank_of(value) for value in arguments if isinstance(value, Last))
    moved: list[Any] = []
    for value in arguments:
        if value is None:
            moved.append(None)
        elif isinstance(value, Last) and rank_of(value) == rank:
            moved.append(value.tensor)
        elif isinstance(value, np.ndarray) and value.ndim <= rank:
            full = value.reshape((1,) * (rank - value.ndim) + value.shape)
            moved.append(np.ascontiguousarray(np.moveaxis(full, 1, -1)) if value.ndim else value)
        elif not isinstance(value, Last | np.ndarray) and rank_of(value) == 0:
            moved.append(value)
        else:
            return None
    return moved


def unsupported(model: onnx.ModelProto) -> dict[str, str]:
    """Operators without a counterpart, with the title of the first node that uses each."""
    found: dict[str, str] = {}
    for proto in _nodes(model.graph):
        if proto.domain not in ("", "ai.onnx"):
            found.setdefault(f"{proto.domain}.{proto.op_type}", title(proto))
        elif proto.op_type not in COUNTERPARTS:
            found.setdefault(proto.op_type, title(proto))
    return found


def title(proto: onnx.NodeProto) -> str:
    """A node as people find it: its name, or what it makes."""
    return f"{proto.name or next(iter(proto.output), '?')!r} ({proto.op_type})"


def attributes_of(proto: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values; text as str, tensors as numpy arrays."""
    found: dict[str, Any] = {}
    for attribute in proto.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        found[attribute.name] = value
    return found


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for proto in graph.node:
        yield proto
        for attribute in proto.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _several(made: Any) -> Sequence[Any]:
    return made if isinstance(made, tuple | list) else (made,)


def _numpy(value: Any) -> Any:
    return value.numpy() if hasattr(value, "numpy") else value
