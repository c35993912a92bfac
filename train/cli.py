"""`python -m dpm_edge.train.cli RECIPE --data DIR [--out DIR] [--json] [field=value …]`; `dpm-edge train` wraps it.

`preview`, `texts` and `mask` in the recipe's place are the tools around training.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from dpm_edge.errors import DpmError
from dpm_edge.progress import say


def parser() -> argparse.ArgumentParser:
    """The arguments of a training run."""
    from dpm_edge.train.recipes import RECIPES

    made = argparse.ArgumentParser(prog="dpm-edge train", description=train.__doc__)
    made.add_argument("recipe", help=f"one of {', '.join(sorted(RECIPES))}")
    made.add_argument("overrides", nargs="*", metavar="field=value", help="for example schedule.epochs=20")
    made.add_argument("--data", type=Path, required=True, help="the data set's folder")
    made.add_argument("--out", type=Path, help="where the run goes; runs/RECIPE if not given. Run again to resume")
    made.add_argument("--json", action="store_true", help="print the results as JSON on stdout")
    made.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return made


def train(recipe: str, data: Path, out: Path, overrides: list[str], *, quiet: bool = False) -> dict:
    """Train a recipe on a data set; an interrupted run in `out` is resumed. Returns what results.json holds."""
    from dpm_edge.train.config import override
    from dpm_edge.train.loop import fit
    from dpm_edge.train.recipes import recipe as named
    from dpm_edge.train.run import prepare

    config = override(named(recipe), overrides)
    return fit(prepare(config, data, out, quiet=quiet))


TOOLS = {
    "preview": "dpm_edge.train.preview",
    "texts": "dpm_edge.train.prompts",
    "mask": "dpm_edge.train.mask",
}
"""What `dpm-edge train` also does, by the word in a recipe's place."""


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, print; or run one of the TOOLS. Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in TOOLS:
        return importlib.import_module(TOOLS[arguments[0]]).main(arguments[1:])
    options = parser().parse_intermixed_args(arguments)
    out = options.out or Path("runs") / options.recipe
    try:
        results = train(options.recipe, options.data, out, options.overrides, quiet=options.quiet)
    except DpmError as error:
        print(f"dpm-edge train: {error}", file=sys.stderr)
        return 1
    if results and options.json:
        print(json.dumps(results))
    elif results:
        last = results["history"][-1]
        say(f"checkpoints best and last, results.json and log.jsonl are in {out}")
        for metric in ("plain", "masked"):
            print(f"{metric}: Rank-1 {last[metric]['rank1']:.1f}  mAP {last[metric]['mAP']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
