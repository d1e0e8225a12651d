"""What a result says about the server it was taken from: name and version, and for a local Prism its settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from cluster.errors import ServingError
from cluster.settings import Boot
from cluster.store import VersionStore
from loadtest.calls import Fetch


def server_facts(fetch: Fetch) -> dict[str, Any]:
    """`name` and `version` as the server's metadata gives them; {} if it gives none."""
    try:
        said = fetch("/v2")
    except ServingError:
        return {}
    if not isinstance(said, dict):
        return {}
    return {name: str(said[name]) for name in ("name", "version") if name in said}


def home_facts(boot: Boot, store: VersionStore, models: Iterable[str]) -> dict[str, Any]:
    """The settings of a local Prism, and how the versions of `models` are deployed; no passwords, no tokens.

    Raises: ModelNotFound, StoreUnavailable.
    """
    settings = asdict(boot.settings)
    for section in ("store", "artifacts"):  # their URLs may hold passwords
        settings[section]["url"] = "elsewhere" if settings[section]["url"] else "own"
    settings["ray"]["fault_tolerance_url"] = "elsewhere" if boot.settings.ray.fault_tolerance_url else ""
    deployed = {}
    for model in sorted(set(models)):
        document, statuses = store.read(model), store.statuses(model)
        for version, record in document.versions.items():
            if record.deploy is None:
                continue
            status = statuses.get(version)
            deployed[f"{model}:{version}"] = {
                "digest": record.digest,
                "format": record.format,
                "precision": record.precision,
                "share": document.split.share_bp(version) / 10_000 if document.split else 0.0,
                "state": status.state if status else "",
                "replicas": status.replicas if status else 0,
                **asdict(record.deploy),
            }
    return {"settings": settings, "models": deployed}
