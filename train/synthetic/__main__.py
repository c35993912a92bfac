"""`python -m dpm_edge.train.synthetic --out DIR`: render people. `samples`: the ones that ship with the package.

python -m dpm_edge.train.synthetic --out rendered --people 1000 --views 16
python -m dpm_edge.train.synthetic --samples --out dpm_edge/assets/samples
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from dpm_edge.errors import DpmError
from dpm_edge.train.synthetic.dataset import Settings, render

SAMPLES = Settings(people=100, views=6, test=100, occluded=0.1, query_occluded=0.6, quality=72, seed=2, first=5001)
"""The shipped sample people: another seed than any training set's, half of the queries behind things."""


def main(arguments: list[str] | None = None) -> int:
    """Parse, render, print the counts as JSON."""
    made = argparse.ArgumentParser(prog="python -m dpm_edge.train.synthetic", description=__doc__.split("\n")[0])
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--samples", action="store_true", help="the people that ship with the package")
    made.add_argument("--workers", type=int, default=0, help="processes; 0: one a core")
    made.add_argument("--quiet", action="store_true")
    defaults = Settings()
    for name in Settings.__dataclass_fields__:
        value = getattr(defaults, name)
        made.add_argument(f"--{name.replace('_', '-')}", type=type(value), help=f"default {value}")
    options = vars(made.parse_args(arguments))
    given = {n: options[n] for n in Settings.__dataclass_fields__ if options[n] is not None}
    try:
        if options["samples"] and given:
            raise DpmError(f"--samples has its own settings; {', '.join(given)} cannot be given with it")
        settings = SAMPLES if options["samples"] else Settings(**given)
        counts = render(settings, options["out"], workers=options["workers"], quiet=options["quiet"])
        if options["samples"]:
            for folder in ("labels", "masks"):
                shutil.rmtree(options["out"] / folder)
            (options["out"] / "bounding_box_train").rmdir()
    except (DpmError, OSError) as error:
        print(f"synthetic: {error}", file=sys.stderr)
        return 1
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
