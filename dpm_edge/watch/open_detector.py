"""Open a person detector: the one that ships, an export of another project, or one that was built."""

from __future__ import annotations

from pathlib import Path

from dpm_edge.errors import EngineError
from dpm_edge.watch.detector import Detector
from dpm_edge.watch.detector_engine import AnyDetector, open_engine
from dpm_edge.watch.detector_exports import open_export


def open_detector(
    path: str | Path | None = None,
    *,
    layout: str = "auto",
    person: int | None = None,
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    backend: str | None = None,
    least: float = 0.1,
) -> AnyDetector:
    """Open a detector.

    Args:
        path: an ONNX file, an OpenVINO IR's .xml, or a folder that `dpm-edge build detector` made; None: the one that
            ships. A folder says layout, person and backend itself.
        layout, person: as `open_export` takes them.
        size: width and height of the input; None: the file's own, see `Detector.load` and `open_export`.
        threads, backend, least: as `Detector.load` takes them.

    Raises:
        EngineError: the file is missing, is no detector of a known layout, or an argument does not fit it.
        MissingLibrary: neither OpenVINO nor ONNX Runtime is installed.
    """
    if path is None:
        return Detector.load(threads=threads, backend=backend, size=size, least=least)
    path = Path(path)
    if not path.is_dir():
        return open_export(path, layout=layout, person=person, size=size, threads=threads, backend=backend, least=least)
    if (layout, person, backend) != ("auto", None, None):
        raise EngineError(f"expected no layout, person or backend with {path}, which says them. Leave them out")
    return open_engine(path, size=size, threads=threads, least=least)
