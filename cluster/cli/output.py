"""What commands print: text for people, one JSON value for programs, errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cluster.errors import ServingError

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_HOME = ".prism"


def home_option(command: F) -> F:
    """`--home DIR`, passed as `home: Path`."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_HOME,
        envvar="PRISM_HOME",
        show_default=True,
        help="Folder that holds all state of one Prism (or PRISM_HOME).",
    )(command)


def json_option(command: F) -> F:
    """`--json`, passed as `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")(command)


def emit(value: Any, as_json: bool, text: str | None = None) -> None:
    """Print `value` as JSON, or `text` for people (`value` itself without one)."""
    if as_json:
        click.echo(json.dumps(value, indent=2, default=str))
    else:
        click.echo(text if text is not None else value)


def fail(error: ServingError, as_json: bool) -> None:
    """Print an error on stderr."""
    if as_json:
        print(json.dumps({"error": type(error).__name__, "message": error.message}), file=sys.stderr)
    else:
        print(f"error: {error.message}", file=sys.stderr)
