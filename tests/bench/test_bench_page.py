"""docs/bench.md names files, options and fields that are there."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import click

from dpm_edge.bench.cameras import CameraTimes
from dpm_edge.bench.measure import BenchSettings
from dpm_edge.cli.bench import command

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")


def test_files_options_and_fields_of_the_page_exist() -> None:
    for name in re.findall(r"`(dpm_edge/[\w/.]+)`", PAGE):
        assert (ROOT / name).is_file(), name
    options = {option for one in command.params if isinstance(one, click.Option) for option in one.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z]+", PAGE)) <= options
    parts = re.findall(r"\| `(\w+)` \|", PAGE)
    assert len(parts) == 4 and set(parts) <= {one.name for one in fields(CameraTimes)}


def test_waiting_time_of_the_page_is_the_default() -> None:
    assert f"({BenchSettings().max_wait_ms:g} ms at most)" in PAGE and "six runs for each number of cameras" in PAGE
