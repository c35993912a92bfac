"""OpenCV, whichever of its builds is installed: `from dpm_edge.opencv import cv2`.

opencv-python (with windows), opencv-python-headless, their contrib twins and the OpenCV of a system are all the module
`cv2` and overwrite each other, so that none of them may be a fixed dependency: the application's own is used.
"""

from __future__ import annotations

from dpm_edge.errors import MissingLibrary

INSTALL = (
    "pip install opencv-python-headless; or opencv-python, where the application opens windows. "
    "Only one of them may be installed"
)

try:
    import cv2
except ImportError as error:
    raise MissingLibrary("OpenCV", "reading and resizing pictures", INSTALL, found=str(error)) from error
if not hasattr(cv2, "imdecode"):  # what is left of a build after another one over it was removed
    raise MissingLibrary(
        "OpenCV", "reading and resizing pictures", INSTALL, found="a folder cv2 that holds no working OpenCV"
    )

__all__ = ["cv2"]
