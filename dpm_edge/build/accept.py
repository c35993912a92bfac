"""Whether an engine that was built may stay: it is opened, run and held against the reference and the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge.build import verify
from dpm_edge.build.source import Source
from dpm_edge.build.verify import Budget
from dpm_edge.errors import BuildRefused, EngineError, MissingLibrary
from dpm_edge.layouts import Dataset
from dpm_edge.progress import say
from dpm_edge.runtime import Engine

GOLDEN_MARGIN = 0.01
"""How far below its value at build time the golden crop's cosine may fall where the engine is opened."""


def examine(
    folder: Path,
    source: Source,
    paths: list[Path],
    labelled: Dataset | None,
    budget: Budget,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """A manifest's verification entry: what was measured, and `over_budget` in words.

    `not_verified` holds the reason where the engine cannot be opened on this machine.
    Raises:
        DataError: no labelled query has a match.
    """
    found: dict[str, Any] = {
        "reference": source.reference.name,
        "crops": len(paths),
        "budget": {"cosine": budget.cosine, "map_points": budget.map_points},
    }
    if not quiet:
        say(f"verifying against {source.reference.name} on {len(paths)} crops")
    try:
        engine = Engine.load(folder, trusted=True)
    except (EngineError, MissingLibrary) as error:
        return found | {"golden_cosine": -1.0, "passed": False, "forced": False, "not_verified": str(error)}
    with engine:
        pre = source.spec.preprocessing
        wanted = verify.run_reference(source.reference, paths, pre, what="reference", quiet=quiet)
        got = verify.run_engine(engine, paths, what="engine", quiet=quiet)
        found |= verify.compare(got, wanted)
        found["golden_cosine"] = round(float(np.sum(got[0][0] * wanted[0][0])) - GOLDEN_MARGIN, 6)
        if labelled is not None:
            found["labelled"] = verify.compare_labelled(engine, source.reference, labelled, quiet=quiet)
    over = verify.faults(found, budget)
    return found | {"passed": not over, "forced": False, "over_budget": over}


def insist(found: dict[str, Any], *, force: bool) -> dict[str, Any]:
    """The entry as it is kept: what did not pass stays only by force, and says so.

    Raises:
        BuildRefused: it did not pass, and nobody forces it.
    """
    if found["passed"]:
        return found
    if force:
        return found | {"forced": True}
    if "not_verified" in found:
        raise BuildRefused(
            "the engine was built but cannot be opened here, so it is not verified. Build it on the device that is "
            f"to run it, or keep it unverified with --force. The reason: {found['not_verified']}"
        )
    raise BuildRefused(
        f"the engine is over the accuracy budget: {'; '.join(found['over_budget'])}. Give more or better crops "
        "(--calibrate), another precision, a wider budget, or keep it as it is with --force"
    )
