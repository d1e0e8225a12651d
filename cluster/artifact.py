"""A verified model on disk: what its directory holds, and how its identity is computed and checked.

    manifest.json   format, precision, signature, source, tool versions, files with SHA-256
    parity.json     how its answers differ from the source's
    profile.json    seconds per batch of n rows, per device it was measured on
    sample.npz      one real example per input (row 0..), for warm-up and smoke tests
    answers.npz     the source's answers to it, where the model could not be run when it was made
    <model files>

The digest of an artifact is the SHA-256 of its manifest's bytes, and the manifest holds the SHA-256 of every other
file: two directories with the same digest are the same artifact.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from cluster.costs import CostCurve
from cluster.errors import ArtifactCorrupt, InvalidRequest
from cluster.tensors import Signature

SCHEMA_VERSION = 1
MANIFEST, PARITY, PROFILE, SAMPLE = "manifest.json", "parity.json", "profile.json", "sample.npz"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `manifest.json` says.

    `format` names the runtime's input (`onnx`, ...), `model_file` the file it opens. `files` maps every file of the
    directory except the manifest (POSIX relative paths) to its SHA-256 in hex. `source` describes where the model came
    from: at least `kind` and `sha256`. `labels` are class names by index, where the model is a classifier.
    """

    format: str
    precision: str
    model_file: str
    signature: Signature
    source: dict[str, Any]
    tools: dict[str, str]
    files: dict[str, str]
    created: str
    labels: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact directory that was read; `verify` checks its files."""

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def read(cls, path: Path) -> Artifact:
        """Raises: InvalidRequest if `path` is no artifact, ArtifactCorrupt if its manifest cannot be understood."""
        file = path / MANIFEST
        if not file.is_file():
            raise InvalidRequest(f"artifact: {path} has no {MANIFEST}")
        raw = file.read_bytes()
        try:
            version = json.loads(raw).get("schema_version")
            if version != SCHEMA_VERSION:
                raise ArtifactCorrupt(f"{file}: schema_version {version!r}, this Prism reads {SCHEMA_VERSION}")
            manifest = msgspec.json.decode(raw, type=Manifest)
        except (ValueError, AttributeError, InvalidRequest) as error:
            raise ArtifactCorrupt(f"{file}: {error}") from None
        for name in (manifest.model_file, *manifest.files):
            parts = PurePosixPath(name)
            if parts.is_absolute() or ".." in parts.parts or not parts.parts:
                raise ArtifactCorrupt(f"{file}: {name!r} leaves the artifact's directory")
        return cls(path, manifest, hashlib.sha256(raw).hexdigest())

    def verify(self) -> None:
        """Check every file against its recorded SHA-256. Raises: ArtifactCorrupt, naming the file."""
        for name, expected in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise ArtifactCorrupt(f"{name}: the manifest lists it, but it is not there")
            if not file.resolve().is_relative_to(self.path.resolve()):
                raise ArtifactCorrupt(f"{name}: a link out of the artifact's directory")
            got = sha256_of(file)
            if got != expected:
                raise ArtifactCorrupt(f"{name}: expected SHA-256 {expected[:16]}..., got {got[:16]}...")
        if self.manifest.model_file not in self.manifest.files:
            raise ArtifactCorrupt(f"{self.manifest.model_file}: the model file has no recorded SHA-256")

    @property
    def model_path(self) -> Path:
        return self.path / self.manifest.model_file

    def profile(self) -> dict[str, Any]:
        """`profile.json` as read: {"devices": {name: {"seconds_by_rows": {"1": s, ...}, "best_rows": n, ...}}}."""
        return _json(self.path / PROFILE)

    def parity(self) -> dict[str, Any]:
        """`parity.json` as read, or {} for a model that came without a source to compare with."""
        return _json(self.path / PARITY)

    def cost_curve(self, device: str = "cpu") -> CostCurve:
        """Seconds by rows measured on `device`; empty if it was never measured there."""
        points = self.profile().get("devices", {}).get(device, {}).get("seconds_by_rows", {})
        return CostCurve.of({int(rows): float(s) for rows, s in points.items()})

    def memory_bytes(self, device: str = "cpu") -> int:
        """What loading it and running its largest batch took on `device`; 0 if that was not measured."""
        measured = self.profile().get("devices", {}).get(device, {}).get("rss_bytes", 0)
        return max(0, int(measured))


def write_manifest(path: Path, manifest: Manifest) -> Artifact:
    """Write `manifest` into the directory and read the artifact back."""
    (path / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(asdict(manifest)), indent=2) + b"\n")
    return Artifact.read(path)


def hash_files(path: Path) -> dict[str, str]:
    """SHA-256 in hex of every file below `path` except the manifest, by POSIX relative path."""
    return {
        file.relative_to(path).as_posix(): sha256_of(file)
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise ArtifactCorrupt(f"{file}: {error}") from None
    if not isinstance(value, dict):
        raise ArtifactCorrupt(f"{file}: expected an object")
    return value
