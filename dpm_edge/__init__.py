"""dpm-edge: recognise a person again, across cameras, when half of the person is hidden.

The light core (this package, `runtime`, `gallery`, `cli`) needs numpy, and OpenCV for pictures, whichever build of it
is there. An engine library comes with an extra (`pip install 'dpm-edge[engines]'`; `cpu` brings an OpenCV too). Torch
is only needed to train and to export a checkpoint.

    from dpm_edge import Engine, Gallery

    with Engine.load("engine") as engine:
        people = engine.embed(frame, boxes)          # frame: (H, W, 3) uint8 BGR; boxes: (N, 4) float, xyxy pixels
        gallery = Gallery(engine.fingerprint, engine.dimension)
        gallery.add(people, people=["anna", "ben"], cameras=["door", "door"])
        matches = gallery.search(people, k=5)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Embeddings", "Engine", "Gallery", "Matches", "__version__"]

if TYPE_CHECKING:
    from dpm_edge.gallery import Gallery, Matches
    from dpm_edge.runtime import Embeddings, Engine

if not os.path.isdir(os.path.join(os.path.dirname(__file__), "train")):
    # a checkout, where train/ and kernels/ lie beside this folder; `python -m` that is started in it looks here first
    __path__.append(os.path.dirname(os.path.dirname(__file__)))

_ROOMS = {"Engine": "runtime", "Embeddings": "runtime", "Gallery": "gallery", "Matches": "gallery"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import dpm_edge` stays fast."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'dpm_edge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"dpm_edge.{_ROOMS[name]}"), name)
