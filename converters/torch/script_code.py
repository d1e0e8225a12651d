"""What the code of a TorchScript archive may say.

It is text in a language like Python, for torch's own interpreter. That has operators for files and other processes, and
classes of C++ that do as they please; they are reached by name only. So the names are looked at here, in text that is
held to the plain form torch itself writes: no comments, one kind of quotes, nothing that two readers could divide into
words differently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# A dot that no name follows belongs to a number, which may end a line: the next line's first name is no member of it.
_TOKEN = re.compile(
    r"[ \n]+|\.(?![A-Za-z_])"
    r'|(?P<word>[A-Za-z_]\w*|\d+|(?<![\w"])"(?:[^"\\\n]|\\[^\n])*"|[!$%&()*+,\-./:;<=>?@\[\]^{|}~])',
    re.ASCII,
)

# Files, other processes, other programs; what cannot be named cannot be called.
_REACHES_OUT = frozenset({"from_file", "save", "load", "remote", "to_here", "IgnoredPythonOp"})
_REACHING_PREFIXES = ("rpc_", "_load_", "_save_")
_PLAIN_NAMESPACES = frozenset({"aten", "prim", "prims", "torchvision", "quantized"})
_ROOTS = frozenset({"ops", "torch", "__torch__", "CONSTANTS"})

# Weights of quantised layers, packed.
_PLAIN_CLASSES = frozenset({"quantized", "rnn"})


def unsafe(code: str) -> str | None:
    """What in TorchScript code could reach out of the model, or None."""
    tokens = _tokens(code)
    if tokens is None:
        return "text that torch does not write"
    for i, word in enumerate(tokens):
        if reaches_out(word):
            return repr(word)
        member = i > 0 and tokens[i - 1] == "."
        if word == "getattr" and not member:
            found = _unsafe_getattr(tokens, i + 1)
        elif word in _ROOTS and not member and tokens[i + 1 : i + 2] != [":"]:
            found = _unsafe_chain([word, *_members(tokens, i + 1)])
        else:
            found = None
        if found:
            return found
    return None


def plain_class(name: str) -> bool:
    """Whether a type's full name is one of the archive's own, or of packed weights."""
    return name.startswith("__torch__.") and _unsafe_chain(name.split(".")) is None


def _tokens(code: str) -> list[str] | None:
    tokens, at = [], 0
    for match in _TOKEN.finditer(code):
        if match.start() != at:
            return None
        at = match.end()
        if match["word"]:
            tokens.append(match["word"])
    return tokens if at == len(code) else None


def reaches_out(word: str) -> bool:
    """Whether an operator or method of this name has to do with files or other processes."""
    return word in _REACHES_OUT or word.startswith(_REACHING_PREFIXES)


def _members(tokens: Sequence[str], at: int) -> list[str]:
    """Names behind a first one: of `.a.b(c)`, `a` and `b`."""
    found = []
    while at + 1 < len(tokens) and tokens[at] == "." and (tokens[at + 1][0].isalpha() or tokens[at + 1][0] == "_"):
        found.append(tokens[at + 1])
        at += 2
    return found


def _unsafe_chain(names: Sequence[str]) -> str | None:
    root, *rest = names
    if root == "ops":
        if len(rest) < 2 or rest[0] not in _PLAIN_NAMESPACES:
            return f"operators of {rest[0] if rest else 'any library'!r}"
    elif root == "__torch__":
        of_torch = rest[:1] == ["torch"]
        if not rest or (of_torch and len(rest) < 2):
            return f"{'.'.join(names)!r} as a value"
        if of_torch and rest[1] == "classes" and (len(rest) < 4 or rest[2] not in _PLAIN_CLASSES):
            return repr(".".join(names[:4]))
    elif not rest:
        return f"{root!r} as a value"
    return None


def _unsafe_getattr(tokens: Sequence[str], at: int) -> str | None:
    """`getattr(value, "0")` is how torch writes attributes whose names are no identifiers."""
    depth, end, commas = 0, at, []
    for end in range(at, len(tokens)):
        depth += (tokens[end] in "([{") - (tokens[end] in ")]}")
        if depth == 0:
            break
        if depth == 1 and tokens[end] == ",":
            commas.append(end)
    # Exactly one string: torch puts those that stand side by side together.
    plain = commas == [end - 2] and tokens[end - 1].startswith('"')
    text = tokens[end - 1][1:-1] if plain else None
    if text is None or "\\" in text or reaches_out(text) or tokens[at + 1] in _ROOTS or text in _ROOTS:
        return f"getattr of {text!r}"
    return None
