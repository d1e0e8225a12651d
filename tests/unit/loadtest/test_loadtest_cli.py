import json

import pytest
from click.testing import CliRunner

import loadtest as package
from cluster.cli.loadtest import loadtest
from cluster.errors import InvalidRequest, OperatorError
from loadtest.scenario import shipped


def call(*arguments):
    return CliRunner().invoke(loadtest, list(arguments))


def test_the_shipped_scenarios_are_listed():
    assert [item["name"] for item in json.loads(call("--list", "--json").output)] == shipped()


def test_the_help_says_what_the_exit_codes_mean():
    assert "2 invalid run" in call("--help").output and "prism loadtest --find-max" in call("--help").output


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--scenario", "nope"], InvalidRequest, "no file nope"),
        (["--slo", "fast"], InvalidRequest, "slo: expected bounds"),
        (["--model", "no/name"], InvalidRequest, "model: expected letters"),
        (["--rate", "-1"], InvalidRequest, "rate: expected a number above 0"),
        (["--host", "localhost"], InvalidRequest, "host: expected a URL"),
    ],
)
def test_bad_input_is_one_line(arguments, error, message):
    result = call("--host", "http://127.0.0.1:1", *arguments)
    assert isinstance(result.exception, error) and message in result.exception.message
    assert "\n" not in result.exception.message


def test_without_a_running_home_the_host_has_to_be_given(tmp_path):
    result = call("--home", str(tmp_path), "--model", "m")
    assert isinstance(result.exception, OperatorError) and "give --host URL" in result.exception.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenario", "store-killed"], "events: they need the Prism of a local home"),
        (["--baseline", "ray-serve"], "baseline: it needs the Prism of a local home"),
        (["--scenario", "canary", "--no-events", "--baseline", "ray-serve"], "baseline: canary has keys"),
        (["--scenario", "store-killed", "--no-events"], "host: nothing answers at http://127.0.0.1:1"),
    ],
)
def test_what_needs_a_local_prism_says_so_before_anything_is_sent(tmp_path, arguments, message):
    result = call("--home", str(tmp_path), "--host", "http://127.0.0.1:1", "--model", "m", *arguments)
    assert message in result.exception.message and "\n" not in result.exception.message


@pytest.mark.parametrize("arguments", [["--artifact", "."], ["--baseline", "ray-serve", "--find-max"]])
def test_options_that_do_not_go_together_are_refused(arguments):
    assert call("--model", "m", *arguments).exit_code == 2


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_sent(tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "report"
    result = call("--host", "http://127.0.0.1:1", "--model", "m", "--out", str(out))
    assert isinstance(result.exception, OperatorError) and "file is not a folder" in result.exception.message
    fine = call("--host", "http://127.0.0.1:1", "--model", "m", "--out", str(tmp_path / "a" / "b"))
    assert "nothing answers" in fine.exception.message and not (tmp_path / "a").exists()


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("missed", 1), ("invalid", 2)])
def test_the_exit_code_is_the_verdict(monkeypatch, tmp_path, status, code):
    from dataclasses import replace

    from loadtest.gate import Verdict
    from loadtest.plan import plan
    from loadtest.runs import Recording, summarize
    from loadtest.samples import Outcome, Recorder, read_samples
    from loadtest.scenario import read_scenario

    metadata = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]}

    def run(scenario, host, out, on_progress, *_):
        prepared = plan(scenario, host, lambda path: metadata)
        recorder = Recorder()
        for due_s in prepared.schedule.due_s.tolist():
            recorder.add(due_s, due_s, due_s + 0.01, Outcome.OK, "1", 0)
        recorder.write(tmp_path / "s.npz", {})
        recording = Recording(read_samples(tmp_path / "s.npz")[0], 0.0, ((0.1,) * 9,), 0, (), None)
        return replace(summarize(scenario, prepared, recording, ""), verdict=Verdict(status, ("why",)))

    assert read_scenario("smoke").name == "smoke"
    monkeypatch.setattr(package, "run", run)
    arguments = ["--host", "http://h:1", "--model", "m", "--out", str(tmp_path / "out")]
    result = call(*arguments)
    assert result.exit_code == code and "offered/s" in result.output and "why" in result.output
    assert json.loads(call(*arguments, "--json").output)["verdict"]["status"] == status
