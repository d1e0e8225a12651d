"""What converters/README.md shows is run as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.artifact import Artifact

README = Path(__file__).parents[2] / "converters" / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_examples_run(tmp_path):
    pytest.importorskip("torch")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in (["bash", "-euc", *blocks("bash")], [sys.executable, "-c", *blocks("python")]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for name in ("iris-artifact", "iris-int8", "both/onnx", "both/int8"):
        Artifact.read(tmp_path / name).verify()
