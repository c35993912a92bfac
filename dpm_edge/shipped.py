"""The models that come with the package, by their names: `dpm-edge build dpm-n`, `model.init=dpm-t`."""

from __future__ import annotations

from pathlib import Path

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
