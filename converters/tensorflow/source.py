"""SavedModels and TFLite files from elsewhere: checked, and brought into a work folder.

A SavedModel is a program: its graph may read and write files or call back into Python. `effects` says what may not
be loaded without trust.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from cluster.errors import ConversionFailed
from cluster.tensors import ANY
from converters.candidate import Candidate, Options, Say
from converters.interface import TRUST
from converters.isolated import describe
from converters.ranges import check_ranges, parse_ranges
from converters.runtime import Specs
from converters.source_cases import fixed_note, with_cases

FOLDER = "saved_model"
OTHER_GRAPHS = ("saved_model.pbtxt", "saved_model.cpb")  # which parts of TensorFlow may take instead of the .pb
MAX_MODEL_BYTES = 64 << 30


def convert_saved_model(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """The same SavedModel, checked and copied; nothing can be compared with, so it is compared with itself.

    Raises: ConversionFailed if it is damaged, could do more than compute, or cannot be loaded.
    """
    from converters.tensorflow.runtime import GRAPH_FILE, describe_model

    say("checking the SavedModel")
    check_folder(candidate.path)
    notes = check_effects(candidate.path / GRAPH_FILE, options.trust_pickle)
    folder = work / FOLDER
    shutil.copytree(candidate.path, folder)
    found = replace(
        candidate,
        path=folder / GRAPH_FILE,
        format="tensorflow",
        folder=work,
        notes=(*candidate.notes, *notes),
    )
    return as_found(found, describe_model(found.path)[0], options)


def convert_tflite(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """The same TFLite file, checked and copied, to be compared with itself. Raises: ConversionFailed."""
    say("checking the TFLite file")
    path = work / "model.tflite"
    if candidate.path.stat().st_size > MAX_MODEL_BYTES:
        raise ConversionFailed(f"{candidate.path.name}: more than {MAX_MODEL_BYTES} bytes")
    shutil.copyfile(candidate.path, path)
    inputs, _ = describe(path, "tflite")
    return as_found(replace(candidate, path=path, format="tflite", folder=work), inputs, options)


def as_found(candidate: Candidate, inputs: Specs, options: Options) -> Candidate:
    """`candidate`, whose model comes without a source, with the cases to prove it on and what it takes as notes."""
    check_ranges(parse_ranges(options.dynamic), inputs)
    batched = options.max_rows > 1 and all(spec.shape and spec.shape[0] == ANY for spec in inputs)
    notes = () if batched or options.max_rows == 1 else (fixed_note(inputs),)
    found = replace(candidate, notes=(*candidate.notes, *notes))
    return with_cases(found, inputs, options, batched)


def check_folder(folder: Path) -> None:
    """Raises: ConversionFailed if copying the folder would copy what is not in it, or more than may be read."""
    if others := [name for name in OTHER_GRAPHS if (folder / name).exists()]:
        raise ConversionFailed(f"{folder.name}: it holds a second graph, {others[0]}")
    root = folder.resolve()
    total = 0
    for entry in folder.rglob("*"):
        if not entry.resolve().is_relative_to(root) or (entry.is_symlink() and entry.is_dir()):
            raise ConversionFailed(f"{folder.name}: it holds a link out of its folder, or to a folder: {entry.name}")
        if entry.is_file():
            total += entry.stat().st_size
        elif not entry.is_dir():
            raise ConversionFailed(f"{folder.name}: {entry.name} is neither a file nor a folder")
    if total > MAX_MODEL_BYTES:
        raise ConversionFailed(f"{folder.name}: more than {MAX_MODEL_BYTES} bytes")


def check_effects(graph_file: Path, trusted: bool) -> tuple[str, ...]:
    """A note on what the graph could do besides computing; nothing for a graph that only computes.

    Raises: ConversionFailed instead of a note, if the model is not `trusted`.
    """
    from converters.tensorflow.effects import effects
    from converters.tensorflow.runtime import serving_graph

    found = ", ".join(effects(serving_graph(graph_file)))
    if not found:
        return ()
    if not trusted:
        raise ConversionFailed(
            f"{graph_file.parent.name}: its graph holds {found}, which may do more than compute; --trust-pickle loads "
            "it all the same"
        )
    return (f"the graph holds {found}: where it is served as it is, {TRUST}=1 must be set",)
