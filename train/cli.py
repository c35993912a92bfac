"""`python -m dpm_edge.train.cli RECIPE --data DIR [--out DIR] [--json] [field=value …]`; `dpm-edge train` wraps it.

A name of TOOLS in the recipe's place runs that tool around training.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from dpm_edge.errors import DpmError
from dpm_edge.progress import say
from dpm_edge.train.allocator import keep_freed_memory
from dpm_edge.train.recipes import RECIPES

TOOLS = {
    "preview": ("dpm_edge.train.preview", "A sheet of what SPT trains on: look before a long run."),
    "mask": ("dpm_edge.train.mask_command", "Teach a checkpoint masks, all else held still: minutes on a CPU."),
    "texts": ("dpm_edge.train.prompts", "Learn a text for each person through CLIP, for the paper's recipes."),
}
"""What `dpm-edge train` also does, by the word in a recipe's place: module and a line of help."""


def recipes() -> dict[str, str]:
    """Give every recipe with the first line of what it says of itself."""
    return {name: (inspect.getdoc(made) or "").split("\n")[0] for name, made in RECIPES.items()}


def parser() -> argparse.ArgumentParser:
    """Make the parser of a training run; its help lists the recipes and the tools."""
    lines = ["recipes:", *(f"  {name:16} {line}" for name, line in recipes().items())]
    lines += ["", "tools, in the recipe's place (`TOOL --help`):", *(f"  {n:16} {t[1]}" for n, t in TOOLS.items())]
    made = argparse.ArgumentParser(
        prog="dpm-edge train",
        description=train.__doc__,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("recipe", help="one of the recipes below")
    made.add_argument("overrides", nargs="*", metavar="field=value", help="for example schedule.epochs=20")
    made.add_argument("--data", type=Path, required=True, help="the data set's folder")
    made.add_argument("--layout", help="how it is laid out; found by looking at it if not given")
    made.add_argument("--out", type=Path, help="where the run goes; runs/RECIPE if not given. Run again to resume")
    made.add_argument("--json", action="store_true", help="print the results as JSON on stdout")
    made.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return made


def train(recipe: str, data: Path, out: Path, overrides: list[str], *, quiet: bool = False) -> dict[str, Any]:
    """Train a recipe on a data set; an interrupted run in `out` is resumed. Returns what results.json holds."""
    from dpm_edge.train.config import override
    from dpm_edge.train.loop import fit
    from dpm_edge.train.recipes import recipe as named
    from dpm_edge.train.run import prepare

    config = override(named(recipe), overrides)
    return fit(prepare(config, data, out, quiet=quiet))


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, print; or run one of the TOOLS. Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_freed_memory()
    if arguments and arguments[0] in TOOLS:
        module, _ = TOOLS[arguments[0]]
        return importlib.import_module(module).main(arguments[1:])
    options = parser().parse_intermixed_args(arguments)
    out = options.out or Path("runs") / options.recipe
    overrides = [*([f"data.layout={options.layout}"] if options.layout else []), *options.overrides]
    try:
        results = train(options.recipe, options.data, out, overrides, quiet=options.quiet)
    except DpmError as error:
        print(f"dpm-edge train: {error}", file=sys.stderr)
        return 1
    if results:
        _tell(results, out, as_json=options.json)
    return 0


def _tell(results: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """The results for a script; or for a person whether training helped, where everything is, and what is not known."""
    from dpm_edge.train.report import comparison

    if as_json:
        print(json.dumps(results))
        return
    if results["start"]:
        print("\n".join(comparison(results)))
    say(f"checkpoints best and last, results.json and log.jsonl are in {out}")
    if not results["config"]["data"]["licence"]:
        say("the card says that the weights' licence is unknown: train with data.licence=… to say what it is")


if __name__ == "__main__":
    sys.exit(main())
