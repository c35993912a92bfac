"""TensorRT: not open for business here yet; says clearly what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from dpm_edge.env import installed
from dpm_edge.errors import EngineError, MissingLibrary
from dpm_edge.manifest import PORTABLE, Manifest


def open_engine(manifest: Manifest, folder: Path, device: str, threads: int | None) -> NoReturn:
    """Refuse: plans can be built, but this version does not run them.

    Raises:
        MissingLibrary: TensorRT is not installed.
        EngineError: it is, but running plans comes with a later version.
    """
    module = "tensorrt_rtx" if manifest.backend == "tensorrt-rtx" else "tensorrt"
    if not installed(module):
        raise MissingLibrary(
            module,
            f"an engine of backend {manifest.backend}",
            "pip install 'dpm-edge[tensorrt]' (JetPack brings its own)",
        )
    raise EngineError(
        f"running {manifest.backend} plans is not part of this version of dpm-edge. Build for the CPU instead: "
        f"dpm-edge build {folder / PORTABLE} -o ENGINE --backend openvino"
    )
