"""The `prism` command: a table of commands, each imported only when it is called.

Every command takes `--json`. Errors go to stderr: exit code 1 for what Prism refuses or fails to do, 2 for wrong usage.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from cluster import __version__
from cluster.cli.output import fail
from cluster.errors import ServingError

COMMANDS = {
    "serve": "cluster.cli.serve:serve",
    "convert": "cluster.cli.convert:convert",
    "compare": "cluster.cli.compare:compare",
    "optimize": "cluster.cli.optimize:optimize",
    "up": "cluster.cli.up:up",
    "down": "cluster.cli.up:down",
    "drain": "cluster.cli.nodes:drain",
    "publish": "cluster.cli.versions:publish",
    "deploy": "cluster.cli.versions:deploy",
    "scale": "cluster.cli.versions:scale",
    "undeploy": "cluster.cli.versions:undeploy",
    "unpublish": "cluster.cli.versions:unpublish",
    "remove": "cluster.cli.versions:remove",
    "split": "cluster.cli.traffic:split",
    "label": "cluster.cli.traffic:label",
    "promote": "cluster.cli.traffic:promote",
    "rollback": "cluster.cli.traffic:rollback",
    "history": "cluster.cli.traffic:history",
    "status": "cluster.cli.status:status",
    "store": "cluster.cli.store:store",
    "infer": "cluster.cli.infer:infer",
    "loadtest": "cluster.cli.loadtest:loadtest",
    "demo": "cluster.cli.demo:demo",
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is called or its help is shown."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="prism")
def cli() -> None:
    """Trained models in, a Ray cluster answering HTTP out."""


def main() -> None:
    """Entry point of the console script."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except ServingError as error:
        fail(error, as_json="--json" in sys.argv)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
