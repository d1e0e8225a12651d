"""Keras models (`.keras`) to TensorFlow SavedModels, compared with what Keras itself answers.

A `.keras` file is configuration and weights. Keras' safe mode builds nothing from it that would run code of its own
(lambda layers); without it the file is as good as a pickle.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"  # before the import, which chooses by it

import keras
import numpy as np

from cluster.errors import ConversionFailed
from converters.candidate import Candidate, Case, Options, Say
from converters.interface import write_order
from converters.onnx.failures import brief
from converters.tensorflow.runtime import GRAPH_FILE, describe_model
from converters.tensorflow.source import FOLDER, MAX_MODEL_BYTES, as_found, check_effects


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """The Keras model's inference function as a SavedModel. Raises: ConversionFailed."""
    say("loading the Keras model")
    model = load(candidate.path, options.trust_pickle)
    folder = work / FOLDER
    say("exporting a SavedModel")
    try:
        model.export(str(folder), format="tf_saved_model", verbose=False)
    except Exception as error:
        raise ConversionFailed(f"Keras cannot export this model: {brief(error)}") from None
    path = folder / GRAPH_FILE
    notes = check_effects(path, options.trust_pickle)
    inputs, outputs = describe_model(path)
    by_name = {spec.name for spec in inputs}
    names = [name for name in _names(model) if name in by_name]
    names += sorted(by_name - set(names))
    write_order(path, names, [spec.name for spec in outputs])
    exported = replace(
        candidate,
        path=path,
        format="tensorflow",
        folder=work,
        tools={**candidate.tools, "keras": keras.__version__},
        notes=(*candidate.notes, *notes),
    )
    found = as_found(exported, describe_model(path)[0], options)
    say("running the Keras model")
    order = [spec.name for spec in outputs]
    return replace(
        found,
        reference=tuple(answer(model, case, names, order) for case in found.cases),
        reference_kind="keras",
    )


def load(path: Path, trusted: bool) -> Any:
    """The model in a `.keras` file. Raises: ConversionFailed if it is damaged, or would run code of its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ConversionFailed(f"{path.name}: Keras cannot load it: {brief(error)}") from None
    if size > MAX_MODEL_BYTES:
        raise ConversionFailed(f"{path.name}: it unpacks to more than {MAX_MODEL_BYTES} bytes")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=not trusted)
    except Exception as error:
        hint = "; --trust-pickle runs it all the same" if "safe_mode" in str(error) or "unsafe" in str(error) else ""
        raise ConversionFailed(f"{path.name}: Keras cannot load it: {brief(error)}{hint}") from None


def answer(model: Any, case: Case, names: list[str], outputs: list[str]) -> tuple[np.ndarray, ...]:
    """Keras' own outputs for one case, in the order of `outputs`. Raises: ConversionFailed with what Keras said."""
    values = [case.inputs[name] for name in names]
    structure = getattr(model, "_inputs_struct", None)
    try:
        given: Any = values[0] if len(values) == 1 else values
        if isinstance(structure, dict):
            given = dict(zip(names, values, strict=True))
        made = model(given, training=False)
    except Exception as error:
        raise ConversionFailed(
            f"the Keras model fails on {case.rows} rows of {case.origin} data: {brief(error)}"
        ) from None
    if isinstance(made, Mapping):
        return tuple(np.asarray(made[name]) for name in outputs)
    found = list(made) if isinstance(made, list | tuple) else [made]
    return tuple(np.asarray(value) for value in found)


def _names(model: Any) -> list[str]:
    return [str(tensor.name) for tensor in getattr(model, "inputs", None) or ()]
