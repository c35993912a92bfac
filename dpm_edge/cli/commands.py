"""The group of all commands. Status goes to stderr, data to stdout; an error on purpose is one line and exit code 1."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from dpm_edge import __version__
from dpm_edge.errors import DpmError

COMMANDS = {
    "demo": "demo",
    "build": "build",
    "refit": "refit",
    "inspect": "inspect",
    "export": "export",
    "trust": "trust",
    "embed": "embed",
    "match": "match",
    "gallery": "gallery",
    "calibrate": "calibrate",
    "eval": "evaluate",
    "bench": "bench",
    "doctor": "doctor",
    "train": "train",
    "explain": "explain",
}
"""Command → its file in this folder, in the order of the help."""


class Commands(click.Group):
    """A group that imports a command's file when it is asked for, and prints our own errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name, or None."""
        if name not in COMMANDS:
            return None
        return import_module(f"dpm_edge.cli.{COMMANDS[name]}").command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a `DpmError` becomes its message on stderr and exit code 1."""
        try:
            return super().invoke(ctx)
        except DpmError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dpm-edge")
def main() -> None:
    """Recognise people again, across cameras, when half of them is hidden.

    \b
    Example:
      dpm-edge demo -o demo-out
    """
