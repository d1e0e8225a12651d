"""`prism optimize` measures in rounds, of which each may end a form and none the others."""

from cluster.errors import ConversionFailed
from converters import optimize
from converters.candidate import Options
from onnx_models import mlp_artifact


def test_a_form_that_cannot_be_measured_with_more_threads_does_not_stop_the_others(tmp_path, monkeypatch):
    made = {name: mlp_artifact(tmp_path / name, costs={1: 0.5}) for name in ("onnx", "int8")}

    def profiled(folder, options):
        if folder.name == "int8" and options.threads == 2:
            raise ConversionFailed("profiling: the process was killed by SIGKILL")
        found = {"1": 0.25 * options.threads}
        return {"seconds_by_rows": found, "load_s": 1.0, "first_call_s": 1.0}

    monkeypatch.setattr(optimize, "profiled", profiled)
    for artifact in made.values():
        (artifact.path / "profile.json").write_text(
            '{"devices": {"cpu": {"seconds_by_rows": {"1": 0.5}, "load_s": 1.0, "first_call_s": 1.0}}}'
        )
    measured, failed = optimize._profiles(made, (1, 2), Options(), lambda text: None)
    assert {count: p["seconds_by_rows"] for count, p in measured["onnx"].items()} == {1: {"1": 0.25}, 2: {"1": 0.5}}
    assert "int8" not in measured and failed == {"int8": "profiling: the process was killed by SIGKILL"}
