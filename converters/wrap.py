"""One call from a model that needs no explanation to an artifact: what `prism serve PATH` uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cluster.artifact import Artifact
from cluster.errors import InvalidRequest
from converters.build import convert, silent
from converters.candidate import Options, Say

SUFFIXES = (".onnx", ".pt2")


def wrap(path: Path, out: Path, *, max_rows: int = 64, options: Options | None = None, say: Say = silent) -> Artifact:
    """The artifact of a `.onnx` or `.pt2` file, written to `out`; an artifact directory is read and returned as it is.

    Raises:
        InvalidRequest: `path` is neither, or `out` exists.
        ArtifactCorrupt: `path` is an artifact whose files do not match its manifest.
        ConversionFailed: The model is damaged, or does not run as it says.
    """
    if path.is_dir():
        artifact = Artifact.read(path)
        artifact.verify()
        return artifact
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidRequest(
            f"model: expected an artifact directory or a file ending in {', '.join(SUFFIXES)}, got {path.name!r}; "
            "`prism convert` takes weights"
        )
    (artifact,) = convert(path, out, ("onnx",), replace(options or Options(), max_rows=max_rows), say)
    return artifact
