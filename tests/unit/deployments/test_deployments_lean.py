import subprocess
import sys
import textwrap

from onnx_models import mlp_artifact


def test_serving_an_onnx_artifact_imports_no_training_framework(tmp_path):
    artifact = mlp_artifact(tmp_path / "a")
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        import deployments.replica, deployments.gateway.gateway, deployments.controller
        from cluster.artifact import Artifact
        from converters.runtime import open_runtime
        artifact = Artifact.read(Path({str(artifact.path)!r}))
        deployments.replica.warm_up(open_runtime(artifact), deployments.replica.sample_of(artifact), 4)
        heavy = {{"torch", "tensorflow", "sklearn", "matplotlib", "locust", "onnx"}} & set(sys.modules)
        assert not heavy, heavy
        print("lean")
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "lean", done.stderr[-2000:]
