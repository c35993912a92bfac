"""The command `dpm-edge`: one file a command, imported when it is used."""

from __future__ import annotations

from dpm_edge.cli.commands import main

__all__ = ["main"]
