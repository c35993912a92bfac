"""The commands of docs/training.md name recipes, tools and fields that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dpm_edge.layouts import LAYOUTS
from dpm_edge.train import cli
from dpm_edge.train.config import override
from dpm_edge.train.recipes import RECIPES, recipe

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
COMMANDS = re.findall(r"^    (dpm-edge train .*?)(?:   .*)?$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_what_exists(command):
    words = shlex.split(command)[2:]
    if words[0] in cli.TOOLS:
        words = words[1:]
    named = [w for w in words if w in RECIPES]
    assert named or words[0].endswith((".json", "best")) or "--init" in words
    override(
        recipe(named[0] if named else "market_tiny"), [w for w in words if re.fullmatch(r"[a-z_]+\.[a-z_]+=.*", w)]
    )


def test_the_page_names_every_recipe_and_layout():
    assert len(COMMANDS) >= 5
    missing = [name for name in (*RECIPES, *LAYOUTS) if f"`{name}`" not in PAGE.read_text()]
    assert not missing
