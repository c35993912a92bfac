"""The models that come with the package, by their names: `dpm-edge build dpm-n`, `model.init=dpm-t`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
MODELS = ("dpm-n", "dpm-t")
"""Names; each is NAME.safetensors with NAME.json, and the same as NAME.onnx, in ASSETS."""
DEFAULT = MODELS[0]
"""What the demo builds where no engine is given."""


def resolve(given: Path, suffix: str) -> Path:
    """Find a model: `given`, or a shipped model's file with `suffix` where `given` is its name.

    A file of the user's own with that name goes first.
    """
    taken = given.exists() or given.with_suffix(".safetensors").exists()
    return ASSETS / f"{given}{suffix}" if str(given) in MODELS and not taken else given


def card(name: str) -> dict[str, Any]:
    """What is known of a shipped model: what it was trained on, its licence and size, and what was measured.

    Returns name, input (height, width), bytes (of NAME.onnx), data, licence; and from ASSETS/models.json, which
    benchmarks/training/model_table.py writes: whole, covered ({"plain", "masked"} mAP in percent), by_share
    ({"0.2": …}), rank1, crops_per_second, machine, date.

    Raises:
        KeyError: no such model ships.
    """
    if name not in MODELS:
        raise KeyError(name)
    spec = json.loads((ASSETS / f"{name}.json").read_text())["model"]
    measured = json.loads((ASSETS / "models.json").read_text())
    pre, weights = spec["preprocessing"], spec["weights"]
    return {
        "name": name,
        "input": [pre["height"], pre["width"]],
        "bytes": (ASSETS / f"{name}.onnx").stat().st_size,
        "data": weights["data"],
        "licence": weights["licence"],
        **measured["models"][name],
        "machine": measured["machine"],
        "date": measured["date"],
    }
