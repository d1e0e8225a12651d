"""Commands of the documentation, run in this process: to start Python and import a framework takes longer."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.cli import convert as convert_command
from cluster.cli import optimize as optimize_command
from cluster.cli.main import cli
from converters.candidate import Options

ROOT = Path(__file__).parents[1]


def command(file: str, pattern: str) -> list[str]:
    """The arguments of the one command in `file` that matches, which may go on over several lines."""
    text = (ROOT / file).read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith("prism ") and re.search(pattern, line))
    return shlex.split(line, comments=True)[1:]


def run_quickly(arguments: list[str], patch: pytest.MonkeyPatch) -> str:
    """What the command prints; it measures for a moment only, and in processes that tests can fork."""
    options_of = convert_command.options_of

    def quick(values: Mapping[str, Any], **defaults: Any) -> Options:
        return replace(options_of(values, **defaults), apart=False, profile_s=0.05)

    with patch.context() as patched:
        for module in (convert_command, optimize_command):
            patched.setattr(module, "options_of", quick)
        done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.output
