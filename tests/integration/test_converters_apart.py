"""A conversion in a process of its own: what happens there is told here, and its death is an error."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import onnx
import pytest

from cluster.errors import ConversionFailed, InvalidRequest
from converters import isolated
from converters.build import convert, convert_what_works
from converters.candidate import Options
from converters.formats import Format
from converters.layers import layers_of
from onnx_models import mlp_artifact, mlp_model

APART = Options(profile_s=0.05, max_rows=4, apart=True)

# Import hooks that strike when a converter is loaded: Python reads this file when it starts.
HOOK = """
import os, signal, sys, time

class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and "converters.worker" in sys.orig_argv:
            {what}

sys.meta_path.insert(0, Hook())
"""
DIES = "print('its last words', file=sys.stderr); os.kill(os.getpid(), signal.SIGSEGV)"
HANGS = "import tempfile; tempfile.mkdtemp(); open({file!r}, 'w').write(str(os.getpid())); time.sleep(600)"


@pytest.fixture
def model(tmp_path):
    onnx.save(mlp_model(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def strike(tmp_path, monkeypatch, module, what):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK.format(module=module, what=what))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))


def left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name not in ("hook", "pid", "temporary"))


def started(tmp_path, *arguments):
    """A command that hangs where it was struck, with temporary files of its own, and the process that hangs."""
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-c", "from cluster.cli.main import main; main()", *map(str, arguments)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    return running, int(awaited(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()))


def test_what_happens_and_what_fails_is_told_as_if_it_were_here(model, tmp_path):
    told = {}
    for where, apart in (("here", False), ("there", True)):
        said = []
        (artifact,) = convert(model, tmp_path / where, options=replace(APART, apart=apart), say=said.append)
        with pytest.raises(InvalidRequest) as wrong:
            convert(model, tmp_path / "no", options=replace(APART, apart=apart, labels=("a", "b")))
        told[where] = (said, wrong.value.message, artifact.manifest.signature, artifact.manifest.tools)
    assert told["here"] == told["there"] and len(told["there"][0]) > 2


def test_a_death_names_the_step_the_signal_and_the_last_words_and_leaves_nothing(model, tmp_path, monkeypatch):
    strike(tmp_path, monkeypatch, "converters.onnx.fp16", DIES)
    with pytest.raises(ConversionFailed, match=r"^fp16: onnx to fp16: .* killed by SIGSEGV: its last words$"):
        convert(model, tmp_path / "out", ("onnx", "fp16"), APART)
    assert left(tmp_path) == ["m.onnx"]


def test_a_target_that_kills_its_process_does_not_take_the_others_along(model, tmp_path, monkeypatch):
    strike(tmp_path, monkeypatch, "converters.onnx.fp16", DIES)
    made, failed = convert_what_works(model, tmp_path / "out", ("onnx", "fp16", "optimized"), APART)
    assert list(made) == ["onnx", "optimized"] and "killed by SIGSEGV" in failed["fp16"]
    for artifact in made.values():
        artifact.verify()


def test_a_source_that_kills_its_process_is_an_error_even_where_targets_may_fail(model, tmp_path, monkeypatch):
    strike(tmp_path, monkeypatch, "converters.onnx.file", DIES)
    with pytest.raises(ConversionFailed, match="onnx: onnx-file to onnx: the process was killed by SIGSEGV"):
        convert_what_works(model, tmp_path / "out", ("onnx", "fp16"), APART)
    assert left(tmp_path) == ["m.onnx"]


def test_a_source_that_ends_the_process_which_looks_at_it_tells_nothing(model, tmp_path, monkeypatch):
    assert isolated.layers(model, "onnx-file") == layers_of(model, Format.ONNX_FILE) is not None
    strike(tmp_path, monkeypatch, "onnx", DIES)
    assert isolated.layers(model, "onnx-file") is None


def test_a_conversion_that_takes_too_long_is_ended(model, tmp_path, monkeypatch):
    strike(tmp_path, monkeypatch, "converters.onnx.file", HANGS.format(file=str(tmp_path / "pid")))
    with pytest.raises(ConversionFailed, match=r"took longer than --timeout allows"):
        convert(model, tmp_path / "out", options=replace(APART, timeout_s=0.5))
    assert left(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_the_process_ends_with_the_command_and_leaves_nothing(model, tmp_path, monkeypatch, number, code):
    strike(tmp_path, monkeypatch, "converters.onnx.file", HANGS.format(file=str(tmp_path / "pid")))
    running, child = started(tmp_path, "convert", model, "-o", tmp_path / "out")
    running.send_signal(number)
    assert running.wait(60) == code
    awaited(lambda: not alive(child) and left(tmp_path) == ["m.onnx"])
    awaited(lambda: not any((tmp_path / "temporary").iterdir()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_comparison_that_is_ended_leaves_nothing(tmp_path, monkeypatch, number):
    artifact = mlp_artifact(tmp_path / "a").path
    strike(tmp_path, monkeypatch, "onnxruntime", HANGS.format(file=str(tmp_path / "pid")))
    running, child = started(tmp_path, "compare", artifact, artifact)
    running.send_signal(number)
    assert running.wait(60) == 128 + number
    assert not alive(child) and left(tmp_path) == ["a"] and not any((tmp_path / "temporary").iterdir())


def awaited(found):
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("nothing came within 60 s")


def alive(pid):
    try:
        return not open(f"/proc/{pid}/stat").read().rpartition(")")[2].startswith(" Z")
    except FileNotFoundError:
        return False


def test_what_a_model_prints_is_no_part_of_the_answer(model, tmp_path, monkeypatch):
    strike(tmp_path, monkeypatch, "converters.onnx.file", "print('chatter')")
    command = [sys.executable, "-c", "from cluster.cli.main import main; main()", "convert", str(model)]
    done = subprocess.run([*command, "-o", str(tmp_path / "out"), "--json"], capture_output=True, text=True)
    assert json.loads(done.stdout)[0]["parity"]["passed"] and "chatter" not in done.stderr


def test_a_factory_must_have_a_name_that_another_process_can_import(model, tmp_path):
    with pytest.raises(InvalidRequest, match="factory: expected module:callable"):
        convert(model, tmp_path / "out", options=replace(APART, factory=os.getpid))
