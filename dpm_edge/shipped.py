"""The model that comes with the package, by its name: `dpm-edge build dpm-t`, `model.init=dpm-t`."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
MODELS = ("dpm-t",)
"""Names; each is NAME.safetensors with NAME.json, and the same as NAME.onnx, in ASSETS."""


def resolve(given: Path, suffix: str) -> Path:
    """Find a model: `given`, or the shipped model's file with `suffix` where `given` is its name.

    A file of the user's own with that name goes first.
    """
    taken = given.exists() or given.with_suffix(".safetensors").exists()
    return ASSETS / f"{given}{suffix}" if str(given) in MODELS and not taken else given
