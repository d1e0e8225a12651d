"""What `prism convert` reads and prints, without converting anything."""

import json

import pytest
from click.testing import CliRunner

from cluster.artifact import PARITY, PROFILE
from cluster.cli.convert import _costs, convert, print_outputs, print_parity, read_labels
from cluster.errors import InvalidRequest
from onnx_models import mlp_artifact


def test_labels_are_a_list_or_a_table_in_json_or_one_a_line(tmp_path):
    (tmp_path / "a.json").write_text('["cat", "dog"]')
    (tmp_path / "b.json").write_text('{"0": "cat", "1": "dog"}')
    (tmp_path / "c.txt").write_text("cat\ndog\n")
    for name in ("a.json", "b.json", "c.txt"):
        assert read_labels(tmp_path / name) == ("cat", "dog")


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"1": "dog"}', '"cat"', "[]"])
def test_labels_that_are_no_names_by_index_are_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InvalidRequest, match="labels"):
        read_labels(tmp_path / "a.json")


def test_labels_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="labels"):
        read_labels(tmp_path / "none.txt")


def test_help_shows_an_example_and_the_list_needs_no_source():
    assert "prism convert model.onnx -o artifact" in CliRunner().invoke(convert, ["--help"]).output
    listed = CliRunner().invoke(convert, ["--list", "--json"])
    assert {"from", "to", "what", "needs", "missing", "missing_builders"} == set(json.loads(listed.output)[0])


def test_a_source_and_a_place_for_the_result_are_required():
    assert CliRunner().invoke(convert, []).exit_code == 2
    assert CliRunner().invoke(convert, ["m.onnx"]).exit_code == 2


def test_the_size_that_is_printed_is_that_of_all_of_a_models_files(tmp_path):
    artifact = mlp_artifact(tmp_path)
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "weights").write_bytes(bytes(3_000_000))
    (tmp_path / PROFILE).write_text('{"devices": {}}')
    assert "3.0 MB" in _costs(artifact)


def output(name):
    measures = dict.fromkeys(("worst_abs", "worst_rel", "share_out", "sqnr_db", "top1"), 0.5)
    return {"name": name, "elements": 12_345_678, **measures}


def test_an_outputs_name_is_told_whole_however_narrow_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_outputs("compared", [("int8-dynamic", {"outputs": [output("target_label")]})])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "target_label" in "".join(line[14:].split()[0] for line in printed.splitlines()[3:] if line.strip())


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["self"], "compared with itself, alone and in company"),
        (["torch", "torch"], "compared with the torch source"),
        (["self", "onnx"], "compared with the onnx source, or itself, alone and in company"),
    ],
)
def test_the_table_says_what_was_compared_with(tmp_path, capsys, monkeypatch, kinds, said):
    monkeypatch.setenv("COLUMNS", "200")
    made = []
    for i, kind in enumerate(kinds):
        artifact = mlp_artifact(tmp_path / str(i))
        (artifact.path / PARITY).write_text(json.dumps({"kind": kind, "outputs": [output("y")]}))
        (artifact.path / PROFILE).write_text('{"devices": {}}')
        made.append(artifact)
    print_parity(tuple(made))
    assert said in [line.strip() for line in capsys.readouterr().out.splitlines()]
