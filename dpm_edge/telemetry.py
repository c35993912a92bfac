"""Import OpenVINO and ONNX Runtime with their telemetry off: the one place that imports either library.

Left to themselves both report to their makers. OpenVINO's Python package posts to google-analytics.com from a process
that it starts, and keeps a client id in ~/intel; with the start methods "spawn" and "forkserver" that process imports
the application's `__main__` once more. ONNX Runtime 1.29 and later posts to mobile.events.data.microsoft.com and keeps
a device id in the cache folder. This package handles pictures of people, so it sends nothing unless somebody asks for
it: DPM_EDGE_TELEMETRY=1 leaves both libraries at their own defaults.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpm_edge.errors import MissingLibrary

VARIABLE = "DPM_EDGE_TELEMETRY"
"""Set to 1, the libraries keep their own defaults."""
INSTALL = "pip install 'dpm-edge[engines]'"
_OPENVINO_SENDER = "openvino_telemetry"


def is_allowed() -> bool:
    """Whether the user asked for the libraries' telemetry."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def import_openvino(needed_for: str) -> Any:
    """Import OpenVINO without the package that sends its telemetry, so that it takes its own stub instead.

    Args:
        needed_for: what cannot go on without it, for the error.

    Raises:
        MissingLibrary: openvino is not installed.
    """
    try:
        if is_allowed() or "openvino" in sys.modules:
            import openvino
        else:
            with _absent(_OPENVINO_SENDER):
                import openvino
    except ImportError as error:
        raise MissingLibrary("openvino", needed_for, INSTALL) from error
    return openvino


def import_onnxruntime(needed_for: str) -> Any:
    """Import ONNX Runtime with ORT_DISABLE_TELEMETRY set, unless the environment holds a value of its own.

    The variable counts if it is set before ONNX Runtime starts; where an application has started it already, its events
    are switched off.

    Args:
        needed_for: what cannot go on without it, for the error.

    Raises:
        MissingLibrary: onnxruntime is not installed.
    """
    if not is_allowed():
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingLibrary("onnxruntime", needed_for, INSTALL) from error
    if not is_allowed() and os.environ["ORT_DISABLE_TELEMETRY"] not in ("", "0"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime


@contextmanager
def _absent(module: str) -> Iterator[None]:
    """Let `import module` fail meanwhile, also where it was imported before."""
    modules: dict[str, Any] = sys.modules  # None is a valid value: such an import raises
    before = modules.get(module)
    modules[module] = None
    try:
        yield
    finally:
        if before is None:
            modules.pop(module, None)
        else:
            modules[module] = before
