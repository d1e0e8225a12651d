"""How the demo talks: numbered steps, the commands it runs, tables of what came back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.errors import OperatorError


class Narrator:
    """Prints the story and runs `prism` commands as a reader would type them."""

    def __init__(self, home: Path, quiet: bool) -> None:
        self._home = home
        self._console = Console(stderr=quiet, highlight=False)
        self._steps = 0
        self._started_s = time.monotonic()
        self.commands: list[str] = []

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def title(self, text: str) -> None:
        self._console.print(Panel.fit(text, border_style="cyan"))

    def step(self, text: str) -> None:
        self._steps += 1
        self._console.print(f"\n[bold cyan]{self._steps}. {text}[/]  [dim]({self.elapsed_s:.0f} s)[/]")

    def say(self, text: str) -> None:
        self._console.print(f"   {text}")

    def good(self, text: str) -> None:
        self._console.print(f"   [green]✓[/] {text}")

    def bad(self, text: str) -> None:
        self._console.print(f"   [bold red]✗ {text}[/]")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        table = Table(show_edge=False, pad_edge=False, header_style="bold")
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self._console.print()
        self._console.print(table)
        self._console.print()

    @contextmanager
    def progress(self, text: str, total: float | None = None) -> Iterator[Progress]:
        """A bar with a task of id 0, `total` units long; one that only spins without."""
        bar = Progress(
            TextColumn("   "),
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(30),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        with bar:
            bar.add_task(text, total=total)
            yield bar

    def prism(self, *arguments: str, home: bool = True, shown: Sequence[str] | None = None) -> Any:
        """Run a `prism` command, show it, and return what its `--json` says. Raises: OperatorError with its message."""
        line = "prism " + " ".join(shown if shown is not None else arguments)
        self.commands.append(line)
        self._console.print(f"   [dim]$[/] [yellow]{line}[/]", soft_wrap=True)
        where = ["--home", str(self._home)] if home else []
        with self.progress("..."):
            done = subprocess.run(
                [sys.executable, "-m", "cluster", *arguments, *where, "--json"], capture_output=True, text=True
            )
        if done.returncode != 0:
            raise OperatorError(f"{line}: {_message(done.stderr)}")
        return json.loads(done.stdout) if done.stdout.strip() else None


def _message(stderr: str) -> str:
    lines = [line for line in stderr.strip().splitlines() if line]
    try:
        return str(json.loads(lines[-1])["message"])
    except (ValueError, KeyError, IndexError):
        return "\n".join(lines[-5:]) or "no message"
