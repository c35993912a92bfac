"""Engine libraries, one file each, imported only when an engine of that kind is opened.

n crops of one call · H×W network input · D feature dimensions · C people of a closed set
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dpm_edge.manifest import Manifest
from dpm_edge.spec import Preprocessing

Fill = Callable[[NDArray[np.float32]], None]
"""Writes the network's input into the (n, 3, H, W) float32 buffer that it is given."""


Enqueue = Callable[[Any, Any, int], None]
"""Enqueues what follows the network: feature and mask, (n, D) float32 where they lie, and the stream's handle. Both
have `__cuda_array_interface__` on a GPU."""


class Backend(Protocol):
    """An open engine. `run` may be called from several threads at once."""

    def run(
        self,
        n: int,
        fill: Fill,
        feature: NDArray[np.float32],
        mask: NDArray[np.float32],
        logits: NDArray[np.float32] | None = None,
        visibility: NDArray[np.float32] | None = None,
    ) -> None:
        """One call: `fill` writes the input (n, 3, H, W); the results are copied to `feature`, `mask` (n, D).

        logits: (n, C), for engines of a closed set. visibility: (n, 2, h, w), for those that give a map.
        """

    def close(self) -> None:
        """Let go of the engine's memory; the backend cannot run afterwards. No call is under way."""


@runtime_checkable
class GpuBackend(Backend, Protocol):
    """An engine on a GPU: it cuts people out of whole frames there, and lets more follow there."""

    place: str
    """Its GPU, by the name that torch gives it: "cuda:0"."""
    lanes: int
    """Calls that run at once, each on a stream of its own; more wait for a lane."""

    def refuses_frames(self, color: str) -> str:
        """Why frames of channel order `color` cannot be cut up on the GPU here; "" where they can."""

    def run_frame(
        self,
        frame: Any,
        boxes: NDArray[np.float32],
        feature: NDArray[np.float32],
        mask: NDArray[np.float32],
        after: Any,
        logits: NDArray[np.float32] | None = None,
        then: Enqueue | None = None,
    ) -> None:
        """As `run`, for the boxes (n, 4) of one frame: numpy (H, W, 3) uint8, or such an array on the GPU.

        after: what `mark` gave, or None: the stream whose work the frame comes from.
        then: called once the network is enqueued, before the results are waited for.
        """

    def mark(self, stream: Any) -> Any:
        """Remember the work that `stream` holds now, for `after`; None where there is no stream to wait for."""


def crop_kernel_refuses(pre: Preprocessing, color: str) -> str:
    """Why the crop kernel does not serve frames of channel order `color` for this preprocessing; "" where it does."""
    if pre.interpolation != "bilinear":
        return f"expected bilinear interpolation, as the crop kernel has it, got a model of {pre.interpolation}"
    if color == pre.color:
        return f"expected channels to be turned round, as the crop kernel does it, got {color} for a model of {color}"
    return ""


_FILES = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt",
    "torch": "torch",
}


def open_backend(manifest: Manifest, folder: Path, device: str, threads: int | None) -> Backend:
    """Open the engine file of a directory that has been checked.

    Raises:
        MissingLibrary: the engine library is not installed.
        EngineError: the library refuses the file or the device.
    """
    module = import_module(f"dpm_edge.runtime.backends.{_FILES[manifest.backend]}")
    return module.open_engine(manifest, folder, device, threads)
