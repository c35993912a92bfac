"""Engine libraries, one file each, imported only when an engine of that kind is opened.

n crops of one call · H×W network input · D feature dimensions
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpm_edge.manifest import Manifest

Fill = Callable[[NDArray[np.float32]], None]
"""Writes the network's input into the (n, 3, H, W) float32 buffer that it is given."""


class Backend(Protocol):
    """An open engine. `run` may be called from several threads at once."""

    def run(self, n: int, fill: Fill, feature: NDArray[np.float32], mask: NDArray[np.float32]) -> None:
        """One call: `fill` writes the input (n, 3, H, W); the results are copied to `feature`, `mask` (n, D)."""

    def close(self) -> None:
        """Let go of the engine's memory; the backend cannot run afterwards."""


_FILES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt"}


def open_backend(manifest: Manifest, folder: Path, device: str, threads: int | None) -> Backend:
    """Open the engine file of a directory that has been checked.

    Raises:
        MissingLibrary: the engine library is not installed.
        EngineError: the library refuses the file or the device.
    """
    module = import_module(f"dpm_edge.runtime.backends.{_FILES[manifest.backend]}")
    return module.open_engine(manifest, folder, device, threads)
