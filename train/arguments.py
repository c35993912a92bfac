"""The arguments that the tools around training share: RECIPE [field=value …] --data DIR [--layout L] --out PATH."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpm_edge.train.config import Config, override
from dpm_edge.train.recipes import recipe


def tool_parser(tool: str, description: str | None, out: Path | None = None) -> argparse.ArgumentParser:
    """Make a parser of them for `dpm-edge train TOOL`; out: where the result goes if not told, None to ask for it."""
    made = argparse.ArgumentParser(
        prog=f"dpm-edge train {tool}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("recipe")
    made.add_argument("overrides", nargs="*", metavar="field=value")
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--layout", help="how the data set is laid out; found by looking at it if not given")
    made.add_argument("--out", type=Path, required=out is None, default=out)
    return made


def config_of(options: argparse.Namespace) -> Config:
    """Give the recipe with its overrides. Raises SpecError for an unknown recipe, field or value."""
    layout = [f"data.layout={options.layout}"] if options.layout else []
    return override(recipe(options.recipe), [*layout, *options.overrides])
