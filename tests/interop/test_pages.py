"""docs/jetson.md and docs/interop.md: their commands exist, their Python compiles, their error messages are ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from dpm_edge.cli.commands import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / name for name in ("jetson.md", "interop.md")]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Every `dpm-edge …` line of the shell blocks, and in backticks, as its arguments."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    lines += [line for line in re.findall(r"`(dpm-edge [^`]+)`", text) if " --" in line or line.count(" ") > 1]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dpm-edge ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_exists(page: Path) -> None:
    found = commands(page)
    assert len(found) >= 2
    for arguments in found:
        group: click.Command = main
        context = click.Context(main)
        while isinstance(group, click.Group) and arguments:
            name, *arguments = arguments
            below = group.get_command(context, name)
            assert below is not None, f"{page.name}: no command {name}"
            group = below
        if arguments:
            group.make_context("page", arguments)  # an unknown option or a missing argument raises


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")


def test_explained_messages_are_ours() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dpm_edge").rglob("*.py"))
    page = PAGES[0].read_text(encoding="utf-8")
    table = page.partition("## When something fails")[2]
    messages = [message for row in table.splitlines() for message in re.findall(r"^\| `([^`]+)`", row)]
    assert len(messages) > 7
    theirs = ("A module that was compiled using NumPy",)
    for message in messages:
        told = re.sub(r"^expected \S+ for [^,]+, got ", "", message)
        assert message.startswith(theirs) or told in source, f"nothing in dpm_edge says {message!r}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([\w./-]+\.md)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name} links {target}"
