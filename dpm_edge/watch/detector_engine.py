"""A detector's engine, made by `dpm-edge build detector`: a folder with its file, how it runs, and its verification."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpm_edge.errors import EngineError
from dpm_edge.files import sha256
from dpm_edge.watch.detector import Detector
from dpm_edge.watch.detector_exports import ExportedDetector, open_export

NAME = "detector.json"
FORMAT = 1
NANODET = "nanodet"
"""Layout of the detector that ships."""

AnyDetector = Detector | ExportedDetector


@dataclass(kw_only=True)
class Candidate:
    """One precision that was tried."""

    precision: str
    milliseconds: float | None = None
    """Median time of a picture."""
    found_again: float | None = None
    """Share of the boxes of the reference that it finds, or of its own that the reference finds: the smaller one."""
    why_not: str = ""


@dataclass(kw_only=True)
class DetectorManifest:
    """What `detector.json` says."""

    model: str
    """File name of the network in the folder."""
    files: dict[str, str]
    """File name → sha256."""
    source: str
    layout: str
    """NANODET, or a name of `detector_exports.LAYOUTS`."""
    person: int
    backend: str
    precision: str
    verification: dict[str, Any]
    candidates: list[Candidate] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def read_manifest(folder: Path) -> DetectorManifest:
    """Read a detector's folder, whose files must be those that were built.

    Raises:
        EngineError: it is no detector's engine, of a later version, or a file differs.
    """
    try:
        told = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            raise EngineError(
                f"expected format {FORMAT} of {folder / NAME}, got {told['format']}. Build it again with this version"
            )
        manifest = DetectorManifest(**{**told, "candidates": [Candidate(**one) for one in told["candidates"]]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EngineError(
            f"expected a detector's engine, got {folder}: {type(error).__name__} in {NAME}: {error}. Make one with: "
            "dpm-edge build detector"
        ) from error
    for name, digest in manifest.files.items():
        if Path(name).name != name or not (folder / name).is_file() or sha256(folder / name) != digest:
            raise EngineError(f"expected {folder / name} as it was built, got another or none. Build it again")
    return manifest


def open_engine(
    folder: Path, *, size: tuple[int, int] | None = None, threads: int | None = None, least: float = 0.1
) -> AnyDetector:
    """Open a detector's folder; size, threads and least as `Detector.load` takes them.

    Raises:
        EngineError: as `read_manifest`, or it does not run here.
        MissingLibrary: its backend is not installed.
    """
    manifest = read_manifest(folder)
    path = folder / manifest.model
    if manifest.layout == NANODET:
        return Detector.load(
            path, threads=threads, backend=manifest.backend, size=size, least=least, precision=manifest.precision
        )
    return open_export(
        path,
        layout=manifest.layout,
        person=manifest.person,
        size=size,
        threads=threads,
        backend=manifest.backend,
        least=least,
        precision=manifest.precision,
    )
