"""How an engine is to be built, kept in an artifact that leaves the building to the GPU that serves it.

The artifact holds the ONNX file in the engine's types; this says for which shapes the engine is made. It stands in the
manifest's `extra` under `engine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from cluster.artifact import Manifest
from cluster.errors import ArtifactCorrupt

EXTRA = "engine"
HERE, ON_LOAD = "here", "on-load"
BUILDS = (HERE, ON_LOAD)

Profile = Mapping[str, tuple[list[int], list[int], list[int]]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the builder is told besides the model.

    Attributes:
        precision: What the ONNX file's types amount to: a strongly typed network computes in them.
        max_rows: Most rows of one call.
        profile: Smallest, best and largest shape of each input with free axes.
        build: When it is built; always `ON_LOAD`.
    """

    precision: str
    max_rows: int
    profile: dict[str, tuple[list[int], list[int], list[int]]]
    build: str = ON_LOAD

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)

    @classmethod
    def of(cls, manifest: Manifest) -> Recipe | None:
        """The recipe of an artifact, or None if it holds an engine. Raises: ArtifactCorrupt."""
        stated = manifest.extra.get(EXTRA)
        if stated is None:
            return None
        try:
            recipe = msgspec.convert(stated, cls)
        except msgspec.ValidationError as error:
            raise ArtifactCorrupt(f"manifest.extra.{EXTRA}: {error}") from None
        if recipe.build != ON_LOAD:
            raise ArtifactCorrupt(f"manifest.extra.{EXTRA}.build: expected {ON_LOAD!r}, got {recipe.build!r}")
        return recipe
