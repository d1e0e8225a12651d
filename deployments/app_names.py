"""How the Serve applications of model versions are named."""

from __future__ import annotations

MODEL_APP = "model:"


def app_name(model: str, version: str) -> str:
    """The Serve application of a model version."""
    return f"{MODEL_APP}{model}:{version}"


def parse_app_name(name: str) -> tuple[str, str] | None:
    """(model, version), or None for an application that is not a model version."""
    if not name.startswith(MODEL_APP):
        return None
    model, _, version = name.removeprefix(MODEL_APP).rpartition(":")
    return (model, version) if model and version else None
