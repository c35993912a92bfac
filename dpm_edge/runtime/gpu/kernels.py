"""Our compiled kernels on one GPU, and the crops of a frame by one of them. No torch, no Triton.

R boxes · frame H×W · crops h×w
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from dpm_edge.errors import EngineError, MissingLibrary
from dpm_edge.runtime.gpu.arrays import DeviceFrame
from dpm_edge.runtime.gpu.device import Device

VARIABLE = "DPM_EDGE_KERNELS"
CROP = "crop_resize_normalize_bgr_fp32"


def kernels_folder(capability: str) -> Path:
    """The folder of compiled kernels: the one that $DPM_EDGE_KERNELS names, or the one inside the installed package.

    Raises:
        EngineError: the variable names no folder.
        MissingLibrary: neither is there; the message has the command that compiles them (on any machine with Triton).
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_dir():
            raise EngineError(
                f"expected a folder of compiled kernels in ${VARIABLE}, got {named!r}. Set it to one, or unset it"
            )
        return Path(named)
    inside = resources.files("dpm_edge") / "kernels" / "compiled"
    if isinstance(inside, Path) and inside.is_dir():
        return inside
    raise missing_kernels(capability, "work on whole frames on the GPU")


def missing_kernels(capability: str, needed_by: str) -> MissingLibrary:
    """The error that has the command which compiles them for a GPU of that compute capability."""
    arch = capability.replace(".", "")
    return MissingLibrary(
        "our compiled kernels",
        needed_by,
        f"python -m dpm_edge.kernels --arch {arch} --op crop_resize_normalize masked_distance --out DIR on a machine "
        f"with Triton (pip install 'dpm-edge[gpu]'; a GPU is not needed), copy DIR here, export {VARIABLE}=DIR",
    )


class CompiledKernels:
    """The kernels of one folder; a context manager."""

    def __init__(self, folder: Path, device: Device) -> None:
        """Open the folder; each kernel is loaded at its first launch.

        Raises:
            EngineError: the folder holds no kernels.
        """
        from dpm_edge.kernels.launch import Kernels, LaunchError

        self._refusal: type[Exception] = LaunchError
        try:
            self._kernels = Kernels(folder, device.index, device.cuda)
        except LaunchError as error:
            raise EngineError(str(error)) from error

    @property
    def names(self) -> tuple[str, ...]:
        """Kernels that are there."""
        return self._kernels.names

    def launch(self, name: str, values: Mapping[str, int], stream: int) -> None:
        """Enqueue one kernel.

        Raises:
            EngineError: there is none of that name for this GPU, or a value breaks its contract.
        """
        try:
            self._kernels.launch(name, values, stream)
        except self._refusal as error:
            raise EngineError(str(error)) from error

    def crop(
        self, frame: DeviceFrame, boxes: int, count: int, affine: int, size: tuple[int, int], out: int, stream: int
    ) -> None:
        """Enqueue crops of `count` boxes (R, 4) float32 at `boxes` into (R, 3, h, w) float32 at `out`.

        The kernel writes the frame's last channel first. A box that is no box gives zeros.
        """
        values = {
            "plane": frame.address,
            "chroma": frame.address,
            "boxes": boxes,
            "affine": affine,
            "frame_height": frame.height,
            "frame_width": frame.width,
            "plane_stride": frame.stride,
            "chroma_stride": frame.stride,
            "out_height": size[0],
            "out_width": size[1],
            "out": out,
            "box_count": count,
        }
        self.launch(CROP, values, stream)

    def close(self) -> None:
        """Unload every kernel."""
        self._kernels.close()
