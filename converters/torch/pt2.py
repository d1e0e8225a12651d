"""`.pt2` archives, loaded without running what a stranger may have put in.

`torch.export.load` is not safe on its own: sample inputs that `weights_only=True` refuses are unpickled anyway, weights
and constants may be marked as pickles, graph targets may name any callable of torch, shape expressions go through
sympy's `eval`, and compiled code may lie beside the graph. So an untrusted archive is rebuilt from the members and the
graph that a plain export has, and only that copy is given to torch.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from cluster.errors import ConversionFailed
from converters.onnx.failures import brief
from converters.torch.archive import ADVICE, NotPlain, TorchArchive, reading
from converters.torch.script_code import reaches_out

MAX_GRAPH_BYTES = 1 << 30
IN_MEMORY_BYTES = 256 << 20  # a larger copy lies in a temporary file

_GRAPH, _EXAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/[a-z_]+|\.format_version|\.storage_alignment"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+"
    + "".join(f"|{re.escape(name)}" for name in (_GRAPH, _EXAMPLES, *_CONFIGS))
)
_IGNORED = ("extra/",)

# What graph nodes may call: operators, control flow over parts of the graph, and arithmetic on sizes. Other operators
# of higher order, and of Python, call whatever they are given.
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|prim|quantized_decomposed|torchvision)\.[A-Za-z]\w*(\.[A-Za-z]\w*)?"
    r"|torch\.ops\.(aten|prims)\._[a-z]\w*(\.[A-Za-z]\w*)?"
)
_TARGET = re.compile(
    r"torch\.ops\.higher_order\.(cond|while_loop|scan|associative_scan|map_impl|out_dtype|invoke_subgraph"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast|auto_functionalized(_v2)?)"
    r"|torch\.sym_[a-z]+|torch\._sym_[a-z]+|math\.[a-z0-9]+"
    r"|_operator\.(eq|ne|le|ge|lt|gt|neg|pos|abs|mul|add|sub|floordiv|truediv|mod|pow|and_|or_|xor|not_|lshift|rshift)"
)
_TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_WORDS = {
    *("Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "positive", "integer", "nonnegative"),
    *("True", "False", "FloorDiv", "CeilDiv", "CleanDiv", "PythonMod", "ModularIndexing", "Eq", "Ne", "Lt", "Le", "Gt"),
    *("Ge", "Piecewise", "Abs", "Identity", "IntTrueDiv", "FloatTrueDiv", "TruncToInt", "ToFloat", "FloatPow", "And"),
    *("Or", "Not", "oo", "int_oo", "CeilToInt", "FloorToInt", "RoundToInt", "PowByNatural", "Where", "zoo", "inf"),
}
_EXPRESSION = re.compile(r"[\w\s(),='+\-*/<>&|~.]*\Z")


def load_program(path: Path, trust_pickle: bool, advice: str = ADVICE) -> Any:
    """The archive's `torch.export.ExportedProgram`.

    Raises: ConversionFailed if it is damaged, or could run code and is not trusted, then with `advice` behind it.
    """
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES) as copy:
        source: Any = str(path)
        if not trust_pickle:
            try:
                write_plain(path, copy)
            except NotPlain as error:
                raise ConversionFailed(error.message + advice) from None
            copy.seek(0)
            source = copy
        try:
            with _weights_only(not trust_pickle):
                return torch.export.load(source)
        except Exception as error:
            raise ConversionFailed(f"{path.name}: torch.export cannot load it: {brief(error)}") from None


def write_plain(path: Path, target: IO[bytes]) -> None:
    """Write the archive to `target` with nothing in it that could run code.

    Raises: ConversionFailed if it is damaged, NotPlain naming what was found.
    """
    with reading(path, ".pt2") as archive:
        archive.write(target, _parts(archive))


def _parts(archive: TorchArchive) -> Iterator[tuple[str, bytes | None]]:
    name = archive.name
    for member in archive.members:
        if member.startswith(_IGNORED):
            continue
        if not _MEMBERS.fullmatch(member):
            raise _unsafe(name, f"member {member[:80]!r}")
        content = None
        if member == _GRAPH:
            content = _checked_graph(archive.read(member, MAX_GRAPH_BYTES), name)
        elif member in _CONFIGS:
            content = _checked_config(archive.read(member, MAX_GRAPH_BYTES), name)
        elif member == _EXAMPLES:
            content = archive.read(member, MAX_GRAPH_BYTES)
            _check_examples(content, name)
        yield member, content


def _checked_graph(content: bytes, name: str) -> bytes:
    graph = json.loads(content)
    for key, value in _entries(graph):
        if key == "target" and isinstance(value, str) and not _safe_target(value):
            raise _unsafe(name, f"a call of {value[:80]!r}")
        if key == "as_operator" and not _safe_operator(value):
            raise _unsafe(name, f"a call of {str(value)[:80]!r}")
        if key in ("expr_str", "hint_expr") and not _safe_expression(str(value)):
            raise _unsafe(name, f"the expression {str(value)[:80]!r}")
        if key in ("in_spec", "out_spec", "as_treespec") and isinstance(value, str) and not _safe_tree(value):
            raise _unsafe(name, "arguments of unusual types")
        if key == "custom_obj_values" and value:
            raise _unsafe(name, "custom objects")
    # What was checked is what torch reads, whatever another parser makes of doubled keys.
    return json.dumps(graph).encode()


def _checked_config(content: bytes, name: str) -> bytes:
    config = json.loads(content)
    for key, entry in config.get("config", {}).items():
        if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            raise _unsafe(name, f"a pickle for {key[:80]!r}")
    return json.dumps(config).encode()


def _check_examples(content: bytes, name: str) -> None:
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        raise _unsafe(name, "pickled code in its sample inputs") from None


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of every object, with its value."""
    stack = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, dict):
            yield from top.items()
            stack.extend(top.values())
        elif isinstance(top, list):
            stack.extend(top)


def _safe_target(target: str) -> bool:
    return bool(_TARGET.fullmatch(target)) or _safe_operator(target)


def _safe_operator(target: Any) -> bool:
    if not isinstance(target, str) or not _OPERATOR.fullmatch(target) or "__" in target:
        return False
    return not any(map(reaches_out, target.split(".")))


def _safe_expression(text: str) -> bool:
    if not _EXPRESSION.match(text) or "__" in text or re.search(r"\.\s*[^\W\d]|[)\]']\s*\.", text):
        return False
    words = re.findall(r"[^\W\d]\w*", text)
    return all(word in _WORDS or re.fullmatch(r"[suz]f?\d+", word) for word in words)


def _safe_tree(text: str) -> bool:
    tree = json.loads(text)
    types = {value for key, value in _entries(tree) if key == "type"}
    return types <= _TREE_TYPES and "__enum__" not in text


def _unsafe(name: str, what: str) -> NotPlain:
    return NotPlain(f"{name}: it holds {what}, which could run code")


@contextmanager
def _weights_only(force: bool) -> Iterator[None]:
    """torch.load reads this variable, and then never unpickles code, whatever its caller asks for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    if force:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if force:
            os.environ.pop(name, None)
            if before is not None:
                os.environ[name] = before
