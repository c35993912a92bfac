"""Where the TensorRT plugin library of dpm-edge lies, for the builder and the runtime alike."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from dpm_edge.errors import EngineError, MissingLibrary

VARIABLE = "DPM_EDGE_PLUGIN_LIBRARY"
FILE = "libdpm_tensorrt_plugin.so"
INSTALL = (
    "cmake -B build -G Ninja -DTENSORRT_INCLUDE_DIR=FOLDER_OF_NvInfer.h && cmake --build build, "
    f"then export {VARIABLE}=$PWD/build/{FILE}; or DPM_EDGE_PLUGIN=1 pip install dpm-edge, which builds it into the "
    "package"
)


def plugin_library() -> Path:
    """The plugin library: the file that $DPM_EDGE_PLUGIN_LIBRARY names, or the one inside the installed package.

    Raises:
        EngineError: the variable names no file.
        MissingLibrary: the variable is not set and the package was installed without the plugin; the message has the
            commands that build it.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file():
            raise EngineError(f"expected {FILE} in ${VARIABLE}, got {named!r}, which is no file. Build it: {INSTALL}")
        return path.resolve()
    inside = resources.files("dpm_edge") / "kernels" / "lib" / FILE
    if isinstance(inside, Path) and inside.is_file():
        return inside
    raise MissingLibrary(FILE, "a network with our TensorRT plugin", INSTALL)
