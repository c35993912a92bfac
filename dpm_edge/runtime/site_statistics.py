"""What the features of a site's cameras have in common, as it lies beside an engine that was built with it."""

from __future__ import annotations

from pathlib import Path

from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import EmbeddingsError, EngineError
from dpm_edge.manifest import CAMERAS, Manifest, rebuild_advice


def read_statistics(manifest: Manifest, folder: Path) -> CameraStatistics | None:
    """Return the statistics of an engine directory; None where it was built without.

    Raises:
        EngineError: cameras.json is missing, damaged or of another model.
    """
    if CAMERAS not in manifest.files:
        return None
    try:
        known = CameraStatistics.load(folder / CAMERAS)
        known.require_model(manifest.fingerprint, manifest.spec.dimension)
    except EmbeddingsError as error:
        raise EngineError(f"{folder / CAMERAS}: {error}. {rebuild_advice(folder)}") from error
    return known
