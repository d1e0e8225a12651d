"""Artifacts of TensorFlow's formats for tests: those of `onnx_models`, converted without being proved."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from cluster.artifact import Artifact, hash_files, write_manifest
from converters.candidate import Candidate, Options
from converters.tensorflow.from_onnx import FOLDER, save
from converters.tensorflow.to_tflite import convert_float
from onnx_models import fixed_artifact, mlp_artifact, text_artifact, two_input_artifact

Maker = Callable[[Path], Artifact]


def in_tensorflow(make: Maker) -> Maker:
    """`make`'s artifact as a SavedModel."""

    def made(path: Path) -> Artifact:
        artifact = make(path)
        model = save(onnx.load(artifact.model_path), path / FOLDER)
        return resealed(artifact, "tensorflow", model)

    made.__name__ = f"tensorflow_{make.__name__}"
    return made


def in_tflite(make: Maker) -> Maker:
    """`make`'s artifact as a TFLite file."""

    def made(path: Path) -> Artifact:
        artifact = in_tensorflow(make)(path)
        saved = Candidate(artifact.model_path, "fp32", {}, format="tensorflow", folder=path)
        model = convert_float(saved, path, Options(), lambda text: None).path
        return resealed(artifact, "tflite", model)

    made.__name__ = f"tflite_{make.__name__}"
    return made


def resealed(artifact: Artifact, format_name: str, model: Path) -> Artifact:
    """The artifact with another model file in it."""
    artifact.model_path.unlink()
    files = hash_files(artifact.path)
    name = model.relative_to(artifact.path).as_posix()
    return write_manifest(artifact.path, replace(artifact.manifest, format=format_name, model_file=name, files=files))


def once(make: Maker) -> Maker:
    """`make`, whose artifact is made once and copied: converting takes seconds."""
    kept: list[Path] = []

    def made(path: Path) -> Artifact:
        if not kept:
            kept.append(Path(tempfile.mkdtemp(prefix="prism-test-")))
            atexit.register(shutil.rmtree, kept[0], ignore_errors=True)
            make(kept[0])
        shutil.copytree(kept[0], path, dirs_exist_ok=True)
        return Artifact.read(path)

    made.__name__ = make.__name__
    return made


MAKERS = [
    *(in_tensorflow(make) for make in (mlp_artifact, two_input_artifact, fixed_artifact, text_artifact)),
    *(in_tflite(make) for make in (mlp_artifact, two_input_artifact, fixed_artifact)),
]
MAKERS = [once(make) for make in MAKERS]
