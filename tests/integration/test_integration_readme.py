"""What the README tells a newcomer to type is typed, against the shared Prism."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_models import mlp_artifact, mlp_model

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)


def run(prism, folder, script):
    """The script's output; it may rely on the README's default port."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("localhost:8000", f"localhost:{prism.port}")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={
            **{name: value for name, value in os.environ.items() if name != "REDIS_URL"},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PRISM_HOME": str(prism.home),
        },
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_readme_takes_a_model_of_ones_own_to_answers_and_back(prism, tmp_path):
    onnx.save(mlp_model(seed=1), tmp_path / "model.onnx")
    mlp_artifact(tmp_path / "better-artifact", seed=2)
    setup, serve, steps, ask, second, forms, replicas = blocks("README.md", "sh")
    assert "make demo" in setup
    assert "curl" in run(prism, tmp_path, serve)
    run(prism, tmp_path, "prism remove mine --force")
    assert '"inputs"' in run(prism, tmp_path, steps)
    assert '"outputs"' in run(prism, tmp_path, ask)
    run(prism, tmp_path, "".join(line for line in replicas.splitlines(True) if "--gpus" not in line))
    run(prism, tmp_path, second)
    assert str(prism.store.read("mine").split) == "1=90,2=10"  # the promotion was rolled back
    run(prism, tmp_path, "prism remove mine --force")
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).standard_normal((64, 4)).astype("f4"))
    run(prism, tmp_path, "".join(forms.splitlines(True)[:2]))
    assert (tmp_path / "compare.html").exists()


@pytest.mark.parametrize("file", ["cluster/README.md", "deployments/README.md"])
def test_the_examples_of_the_folders_run(file):
    for script in blocks(file, "python"):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
