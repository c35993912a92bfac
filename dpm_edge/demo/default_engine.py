"""The engine of the model that ships: built once into a folder, and used again from there."""

from __future__ import annotations

from pathlib import Path

from dpm_edge import shipped
from dpm_edge.errors import CheckpointError, DpmError
from dpm_edge.files import sha256
from dpm_edge.manifest import PORTABLE, Manifest
from dpm_edge.progress import say
from dpm_edge.runtime import Engine

MODEL = shipped.ASSETS / f"{shipped.DEFAULT}.onnx"


def open_engine(out: Path, engine: Path | None, *, quiet: bool) -> Engine:
    """Open the user's engine, or the default one: built into out/engine, or used again where it is there already.

    Raises:
        CheckpointError: the package holds no model.
        DpmError: whatever building or opening raises.
    """
    if engine is not None:
        return Engine.load(engine)
    from dpm_edge.build import build

    folder = out / "engine"
    if not MODEL.is_file():
        raise CheckpointError(f"expected the model that ships at {MODEL}, got nothing. Install dpm-edge again")
    if not _is_of(folder, MODEL):
        if not quiet:
            say(f"building {folder} from the model that ships")
        build(MODEL, folder, backend="openvino", precision="fp32", progress=not quiet)
    return Engine.load(folder)


def _is_of(folder: Path, model: Path) -> bool:
    """Whether `folder` holds a whole engine of exactly this model, for the library that is installed."""
    from dpm_edge.runtime.checks import fits

    try:
        manifest = Manifest.read(folder)
    except DpmError:
        return False
    return not fits(manifest, folder) and manifest.files.get(PORTABLE) == sha256(model)
