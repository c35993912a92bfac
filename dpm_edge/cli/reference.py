"""docs/cli.md, written from the commands' own help:  python -m dpm_edge.cli.reference [--check]."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dpm_edge.cli.commands import COMMANDS, main

PAGE = Path("docs/cli.md")
HEADING = """# The command `dpm-edge`

Written by `python -m dpm_edge.cli.reference`; edit the commands in `dpm_edge/cli/`, not this page. Status goes to
stderr, data to stdout; commands with `--json` print the same as JSON. An error is one line on stderr; the exit code is
1, 2 for a command line that is not understood, 130 after Ctrl-C. DPM_EDGE_TRACEBACK=1 shows where an error came from.
"""


def page() -> str:
    """The whole page."""
    group = click.Context(main, info_name="dpm-edge", terminal_width=100, **main.context_settings)
    parts = [HEADING, f"```text\n{main.get_help(group)}\n```\n"]
    for name in COMMANDS:
        command = main.get_command(group, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=group, terminal_width=100)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
        for below, one in command.commands.items() if isinstance(command, click.Group) else ():
            inner = click.Context(one, info_name=below, parent=context, terminal_width=100)
            parts.append(f"### {name} {below}\n\n```text\n{one.get_help(inner)}\n```\n")
    return "\n".join(parts)


def write_or_check(check: bool) -> int:
    """Write the page, or say with exit code 1 that it is not current."""
    if check:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        if not current:
            print(f"{PAGE} is not current: python -m dpm_edge.cli.reference", file=sys.stderr)
        return 0 if current else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(write_or_check("--check" in sys.argv[1:]))
