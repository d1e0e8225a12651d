"""What a SavedModel's graph could do besides computing: found by what each operation is allowed, before anything runs.

A SavedModel is a program. TensorFlow's registry says which operations have no state; those compute, but for some that
reach files, Python or other machines all the same. Of the others, those are allowed that keep variables, tables and
random numbers in this process, or call functions of the same file. Whatever is not allowed is refused, in every node
and function of the file, whether something leads there or not: shapes are inferred, and constants folded, when a graph
is loaded.

Three kinds are allowed where they belong only. Checkpoints are read when a model is loaded, from the path that the
loader gives; what writes them may be there, but nothing that is run may lead to it; and tables are filled from files
that are the model's own assets. So it is followed where such a path comes from, through calls of functions too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import op_def_registry

INIT_SIGNATURE = "__saved_model_init_op"
INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
ASSETS_COLLECTION = "saved_model_assets"

# Without state by the registry, and yet more than arithmetic: files, Python, other processes, threads, the end of this.
_REACHES_OUT = re.compile(
    r"ReadFile|MatchingFiles|ImmutableConst|GenerateVocabRemapping|PyFunc\w*|Abort|\w*Dataset\w*|\w*Iterator\w*"
    r"|(En|De)codeProto\w*|Debug\w+|Copy(Host|ToMesh\w*)?|Reader\w+|Queue\w+|Barrier\w+|Snapshot\w*|SymbolicGradient"
    r"|RemoteFusedGraphExecute|Mlir\w+|_?Xla\w+|_?TPU\w*|Tpu\w+|DTensor\w+|Relayout\w*|TRT\w+|Experimental\w+"
    r"|InfeedEnqueue\w*|Prelinearize\w*|Collective\w+|\w*(Send|Recv)"
)
# With state, all of it in this process.
_KEEPS_TO_ITSELF = re.compile(
    r"VarHandleOp|VarIsInitializedOp|VariableShape|Variable(V2)?|TemporaryVariable|DestroyResourceOp|DisableCopyOnRead"
    r"|Assign(Add|Sub)?VariableOp|ReadVariableOp|Resource(Gather(Nd)?|Scatter\w+|StridedSliceAssign|CountUpTo)"
    r"|(Anonymous)?(Mutable(Dense)?)?HashTable(OfTensors)?(V2)?|LookupTable\w+|InitializeTable(V2)?"
    r"|Random(Crop|Gamma|Poisson(V2)?|Shuffle|StandardNormal|Uniform(Int)?)|Multinomial|(Parameterized)?TruncatedNormal"
    r"|Stateful(RandomBinomial|StandardNormal(V2)?|TruncatedNormal|Uniform(FullInt|Int)?)|Rng(ReadAndSkip|Skip)"
    r"|StatelessRandomGetAlg|NonDeterministicInts|SampleDistortedBoundingBox(V2)?|If|While|Case|StatefulPartitionedCall"
    r"|Assert|CheckNumerics(V2)?|GuaranteeConst|Empty|DeviceIndex|TensorArray\w*|Stack(Close|Pop|Push)?V2|CudnnRNN(V[23])?"
)
_SAVER = {"SaveV2", "MergeV2Checkpoints", "RestoreV2"}
_TABLE_FILES = {"InitializeTableFromTextFile", "InitializeTableFromTextFileV2"}
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_SAME = {"Identity", "PlaceholderWithDefault"}

_KEEPING = {"AssignVariableOp", "ReadVariableOp", "VarIsInitializedOp", "DisableCopyOnRead"}

# Far more than models have: searching must end soon whatever a file holds.
MOST_STEPS, MOST_CALLS, MOST_DEPTH = 100, 100_000, 200

ASSET, CHECKPOINT, OTHER = "asset", "checkpoint", ""  # what a path is


def effects(graph: meta_graph_pb2.MetaGraphDef) -> tuple[str, ...]:
    """What in `graph` is not known to be computing only, in a few words each; empty for a graph that only computes."""
    found = set(_assets(graph))
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    for nodes in (graph.graph_def.node, *(function.node_def for function in functions.values())):
        found |= {node.op for node in nodes if node.op not in functions and not allowed(node.op)}
    return tuple(sorted(found | _Flow(graph, functions).found()))


def allowed(operation: str) -> bool:
    """Whether an operation may be in a graph at all. One that this TensorFlow does not know may not."""
    known = op_def_registry.get(operation)
    if known is None:
        return False
    if operation in _SAVER | _TABLE_FILES or _KEEPS_TO_ITSELF.fullmatch(operation):
        return True
    return not known.is_stateful and not _REACHES_OUT.fullmatch(operation)


def _assets(graph: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
    for asset in graph.asset_file_def:
        pure = PurePosixPath(asset.filename)
        plain = asset.filename and not pure.is_absolute() and ".." not in pure.parts
        if not plain or "\\" in asset.filename or "://" in asset.filename:
            yield f"the asset {asset.filename[:80]!r}, outside of its folder"
    if ASSETS_COLLECTION in graph.collection_def and not graph.asset_file_def:
        yield "assets as TensorFlow before 1.14 kept them"


class _Flow:
    """What loading and serving run, followed from where they begin."""

    def __init__(self, graph: meta_graph_pb2.MetaGraphDef, functions: dict[str, Any]) -> None:
        self._graph, self._functions = graph, functions
        self._nodes = {node.name: node for node in graph.graph_def.node}
        self._paths = {_node(asset.tensor_info.name): ASSET for asset in graph.asset_file_def}
        if graph.saver_def.filename_tensor_name:
            self._paths[_node(graph.saver_def.filename_tensor_name)] = CHECKPOINT
        self._within = {_variable(node) for function in functions.values() for node in function.node_def}
        self._seen: set[tuple[str, tuple[str, ...], str]] = set()
        self._found: set[str] = set()
        self._depth = 0

    def found(self) -> set[str]:
        """What is run with a path that it must not be run with."""
        graph = self._graph
        ends = {key: [info.name for info in entry.outputs.values()] for key, entry in graph.signature_def.items()}
        init = ends.pop(INIT_SIGNATURE, [])
        for key in INIT_COLLECTIONS:
            if key in graph.collection_def:
                init += graph.collection_def[key].node_list.value
        # The loader gives paths of assets to what fills tables, and the checkpoint's to what reads it, to nothing else.
        self._run((name for names in ends.values() for name in names), OTHER)
        self._run(init, ASSET)
        self._run([graph.saver_def.restore_op_name], CHECKPOINT)
        objects = graph.object_graph_def
        for name, concrete in objects.concrete_functions.items():
            if name in self._functions:
                bound = [_bound(objects, i) for i in concrete.bound_inputs]
                free = len(self._functions[name].signature.input_arg) - len(bound)
                self._call(name, (*[OTHER] * free, *bound), ASSET)
        for name, function in self._functions.items():
            if "api_implements" in function.attr:  # TensorFlow may put it in the place of another
                self._call(name, (), ASSET)
        return self._found

    def _run(self, roots: Iterable[str], given: str) -> None:
        """Every node that `roots` need, where paths of the kind `given` are the loader's."""
        open_nodes, seen = [_node(root) for root in roots if root], set[str]()
        while open_nodes:
            name = open_nodes.pop()
            node = self._nodes.get(name)
            if name in seen or node is None:
                continue
            seen.add(name)
            open_nodes += [_node(reference) for reference in node.input]
            self._check(node, (self._path(reference, given) for reference in _data(node)), given)

    def _path(self, reference: str, given: str) -> str:
        """What kind of path a tensor of the graph is, where the loader gives those of the kind `given`."""
        if given == OTHER:
            return OTHER
        for _ in range(MOST_STEPS):
            name = _node(reference)
            if name in self._paths:
                return self._paths[name] if self._paths[name] == given else OTHER
            node = self._nodes.get(name)
            if node is None or not node.input:
                return OTHER
            if node.op == "ReadVariableOp":
                return self._kept(_node(node.input[0]), given)
            if node.op not in _SAME:
                return OTHER
            reference = node.input[0]
        return OTHER

    def _kept(self, handle: str, given: str) -> str:
        """What kind of path a variable keeps: assets are put into one, which then nothing else may be put into."""
        name = _variable(self._nodes.get(handle))
        if not name or name in self._within:
            return OTHER
        handles = {node.name for node in self._nodes.values() if _variable(node) == name}
        users = [node for node in self._nodes.values() if handles & {_node(reference) for reference in _data(node)}]
        puts = [node for node in users if node.op == "AssignVariableOp"]
        if not puts or any(node.op not in _KEEPING for node in users):
            return OTHER
        return given if all(self._paths.get(_node(put.input[1])) == given for put in puts) else OTHER

    def _check(self, node: Any, inputs: Iterable[str], given: str) -> None:
        called = [(key, name) for key, value in node.attr.items() for name in _called(value)]
        if not called and node.op not in _SAVER and node.op not in _TABLE_FILES and node.op not in self._functions:
            return  # where its inputs come from need not be known
        paths = list(inputs)
        if node.op in _SAVER and not (node.op == "RestoreV2" and paths[:1] == [CHECKPOINT]):
            self._found.add(f"{node.op} of a path that is not the loader's")
        if node.op in _TABLE_FILES and paths[1:2] != [ASSET]:
            self._found.add(f"{node.op} of a file that is none of its assets")
        if node.op in self._functions:
            self._call(node.op, tuple(paths), given)
        for key, name in called:
            self._call(name, tuple(paths) if node.op in _CALLS and key == "f" else (), given)

    def _call(self, name: str, paths: tuple[str, ...], given: str) -> None:
        function = self._functions.get(name)
        if function is None or (name, paths, given) in self._seen:
            return
        if len(self._seen) == MOST_CALLS or self._depth == MOST_DEPTH:
            self._found.add("more calls than can be followed")
            return
        self._seen.add((name, paths, given))
        arguments = [argument.name for argument in function.signature.input_arg]
        known = dict(zip(arguments, paths, strict=False))
        nodes = {node.name: node for node in function.node_def}
        self._depth += 1
        for node in function.node_def:
            self._check(node, (_inner(reference, known, nodes) for reference in _data(node)), given)
        self._depth -= 1


def _inner(reference: str, known: dict[str, str], nodes: dict[str, Any]) -> str:
    """What kind of path a tensor in a function is."""
    for _ in range(MOST_STEPS):
        name = _node(reference)
        if name in known and ":" not in reference:
            return known[name]
        node = nodes.get(name)
        if node is None or node.op != "Identity" or not node.input:
            return OTHER
        reference = node.input[0]
    return OTHER


def _called(value: Any) -> Iterator[str]:
    """Names of the functions in an attribute."""
    for function in (value.func, *value.list.func):
        if function.name:
            yield function.name
            for inner in function.attr.values():
                yield from _called(inner)


def _bound(objects: Any, i: int) -> str:
    """What kind of path a function of the object graph is given by what it was traced with."""
    known = 0 <= i < len(objects.nodes) and objects.nodes[i].WhichOneof("kind") == "asset"
    return ASSET if known else OTHER


def _variable(node: Any) -> bytes:
    """The name under which a variable's nodes share it; empty for other nodes, and for a variable without one."""
    return bytes(node.attr["shared_name"].s) if node is not None and node.op == "VarHandleOp" else b""


def _data(node: Any) -> list[str]:
    return [reference for reference in node.input if not reference.startswith("^")]


def _node(reference: str) -> str:
    return reference.lstrip("^").partition(":")[0]
