"""The libraries behind the two backends: TensorRT, and TensorRT for RTX, whose Python names are the same."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dpm_edge.errors import MissingLibrary

if TYPE_CHECKING:
    import tensorrt

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL = {
    "tensorrt": "pip install 'dpm-edge[tensorrt]' on x86; on a Jetson TensorRT comes with JetPack "
    "(sudo apt install nvidia-jetpack, then a virtual environment with --system-site-packages)",
    "tensorrt-rtx": "pip install tensorrt-rtx-cu13",
}


def load_library(backend: str) -> ModuleType:
    """Import the library of a backend.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        return import_module(MODULES[backend])
    except ImportError as error:
        raise MissingLibrary(MODULES[backend], f"the {backend} backend", INSTALL[backend]) from error


def collecting_logger(trt: ModuleType) -> Any:
    """A logger that keeps the library's errors in `reasons` (a list of str) instead of printing them."""

    class Collecting(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.reasons: list[str] = []

        def log(self, severity: tensorrt.ILogger.Severity, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.reasons.append(message.strip())

    return Collecting()
