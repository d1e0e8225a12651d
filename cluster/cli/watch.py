"""The same thing again every second, until Ctrl-C."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import click

EVERY_S = 1.0


def show_again(
    look: Callable[[], Any],
    text: Callable[[Any], str],
    as_json: bool,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Show what `look` finds, as `text` or as one line of JSON each, until Ctrl-C.

    On a terminal the whole screen is written over; elsewhere one look follows the other.
    """
    try:
        if as_json:
            while True:
                click.echo(json.dumps(look(), default=str))
                pause(EVERY_S)
        _on_screen(look, text, pause)
    except KeyboardInterrupt:
        return


def _on_screen(look: Callable[[], Any], text: Callable[[Any], str], pause: Callable[[float], None]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        while True:
            click.echo(text(look()) + "\n")
            pause(EVERY_S)
    with Live(Text(text(look()), no_wrap=True), console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(Text(f"{text(look())}\n\n{time.strftime('%H:%M:%S')}, Ctrl-C ends", no_wrap=True), refresh=True)
            pause(EVERY_S)
