"""The endurance run in a short form: a Prism of its own, two models under bursts, and what is kept of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import procs
from cluster.home import Home
from loadtest.endurance import MODELS
from loadtest.result import LoadResult

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

LARGEST_BYTES = 2 << 20  # what is kept goes into a repository


def test_a_short_run_answers_all_shows_who_was_held_back_and_leaves_nothing_behind(tmp_path):
    options = ("--seconds", "15", "--rate", "10", "--seed", "53", "--utilisation", "0.05")  # so that little competes
    options += ("--work-dir", str(tmp_path / "work"), "--out", str(tmp_path / "kept"))
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.endurance", *options], capture_output=True, text=True, timeout=280
    )
    assert done.returncode in (0, 1, 2), done.stdout + done.stderr
    result = LoadResult.read(tmp_path / "kept" / "endurance.json")
    assert result.verdict.exit_code == done.returncode
    counts = result.total.counts
    assert counts.failed == 0 and counts.answered > 0, counts
    assert set(result.server.replicas) == set(counts.versions) == {f"{model}:1" for model in MODELS}
    deployed = result.about_server["models"]
    assert deployed["urgent:1"]["priority"] > deployed["patient:1"]["priority"]
    wanted, granted = (result.server.wanted, result.server.granted)
    assert max(filter(None, wanted["patient:1"])) > 1 and max(filter(None, wanted["urgent:1"])) > 1, wanted
    assert 1 in granted["patient:1"] and 2 in granted["urgent:1"], granted  # three find room
    page = (tmp_path / "kept" / "endurance.html").read_text()
    assert "By the minute" in page and "seconds held patient:1" in page and os.fspath(tmp_path) not in page
    assert sum(file.stat().st_size for file in (tmp_path / "kept").iterdir()) < LARGEST_BYTES
    (home,) = re.findall(r"^home (\S+), ", done.stdout, re.MULTILINE)
    assert not Path(home).parent.exists() and not procs.find_marked(Home(Path(home)).key)
