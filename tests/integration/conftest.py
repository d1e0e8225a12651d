"""One real Prism for the whole test session: embedded store, Ray, controller, gateway, on free ports.

Tests share it and keep apart by model names of their own. It is taken down however the session ends.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from running import Prism, free_port


@pytest.fixture(scope="session")
def prism():
    with tempfile.TemporaryDirectory(prefix="prism-test-") as folder:
        made = Prism(Path(folder) / "home", free_port())
        settings = Path(folder) / "settings.yaml"
        settings.write_text("ray:\n  num_cpus: 8\ngateway:\n  max_deadline_s: 60\n")
        try:
            made.cli("up", "--http-port", str(made.port), "--grpc-port", str(free_port()), "--config", str(settings))
            yield made
        finally:
            made.cli("down", check=False)
