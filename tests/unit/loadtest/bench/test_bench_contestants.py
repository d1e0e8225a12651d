import sys

import pytest

from cluster.errors import InvalidRequest
from loadtest.bench.contestants import CONTESTANTS, Contestant, filled, read_contestants


def test_a_contestant_whose_package_is_missing_says_which():
    made = Contestant("x", "", ("true",), needs=("numpy", "no_such_package_here"))
    assert made.missing() == "no_such_package_here"
    assert CONTESTANTS["starlette"].missing() == ""


def test_places_in_a_command_are_filled_and_other_braces_stay():
    assert filled("{python} {port} {other}", {"port": "80"}) == f"{sys.executable} 80 {{other}}"


def test_a_server_may_ask_for_smaller_batches_but_not_for_larger_ones():
    assert Contestant("x", "", ("true",), best_batch_rows=16).batch_rows(64) == 16
    assert Contestant("x", "", ("true",), best_batch_rows=16).batch_rows(8) == 8
    assert Contestant("x", "", ("true",)).batch_rows(64) == 64


def test_more_contestants_are_read_from_a_file(tmp_path):
    file = tmp_path / "own.json"
    file.write_text('[{"name": "own", "about": "ours", "command": ["serve", "{port}"], "formats": ["raw"]}]')
    assert read_contestants(file)["own"].command == ("serve", "{port}")


@pytest.mark.parametrize(
    "text",
    [
        '[{"name": "own", "about": "", "command": []}]',
        '[{"name": "own", "about": "", "command": ["x"], "formats": ["xml"]}]',
        '[{"name": "own"}]',
        "{",
    ],
)
def test_a_file_that_makes_no_contestant_is_refused_by_name(text, tmp_path):
    file = tmp_path / "own.json"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=r"own\.json"):
        read_contestants(file)
