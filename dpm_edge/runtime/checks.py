"""What is checked before an engine is opened, and the golden crop that is run right after."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge import env
from dpm_edge.errors import EngineError, MissingLibrary
from dpm_edge.manifest import GOLDEN, PORTABLE, Manifest, rebuild_advice
from dpm_edge.runtime import trust

LIBRARY = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx-cu13",
    "torch": "torch",
}
"""Backend → distribution whose version decides whether an engine opens."""
INSTALL = {
    "openvino": "'dpm-edge[engines]'",
    "onnxruntime": "'dpm-edge[engines]'",
    "tensorrt": "'dpm-edge[tensorrt]'",
    "tensorrt-rtx": "tensorrt-rtx-cu13 'dpm-edge[gpu]'",
    "torch": "'dpm-edge[build]'",
}
"""Backend → what pip installs to run it."""
DEVICES = {
    "openvino": ("CPU", "GPU", "NPU", "AUTO"),
    "onnxruntime": ("CPU",),
    "tensorrt": ("GPU",),
    "tensorrt-rtx": ("GPU",),
    "torch": ("CPU", "GPU"),
}
"""Backend → devices that one may ask for, the one that is meant where nobody asks first; "GPU.1" is the second GPU."""
GOLDEN_COSINE = 0.99
"""Least cosine between the golden crop's feature here and at build time, where the manifest keeps no other."""


def major(version: str) -> str:
    """The part of a version that must not differ: "2026.4.1" → "2026"."""
    return version.split(".", 1)[0]


def check_library(manifest: Manifest, folder: Path) -> None:
    """Refuse an engine of another major version of its library.

    Raises:
        MissingLibrary: the library is not installed.
        EngineError: its major version differs from the build's; the message gives both.
    """
    name = LIBRARY[manifest.backend]
    here, then = env.version(name), manifest.libraries.get(name)
    if here is None:
        raise MissingLibrary(name, f"the engine in {folder}", f"pip install {INSTALL[manifest.backend]}")
    if then is not None and major(here) != major(then):
        raise EngineError(
            f"the engine in {folder} was built with {name} {then}: expected that major version, got {name} {here}. "
            f"{rebuild_advice(folder)}"
        )


def check_device(manifest: Manifest, folder: Path, device: str | None) -> str:
    """The device to open an engine on: the one asked for, or for None the one that it was built for.

    Raises:
        EngineError: the backend does not know it; the message gives the devices that are possible.
    """
    known = DEVICES[manifest.backend]
    if device is None or device == manifest.device:
        return manifest.device if manifest.device.split(".")[0] in known else known[0]
    if device.split(".")[0] not in known:
        raise EngineError(
            f"expected a device of {', '.join(known)} for {manifest.backend}, the backend of {folder}, got {device!r}"
        )
    return device


def check_gpu(manifest: Manifest, folder: Path) -> None:
    """Refuse a plan of another GPU, driver, TensorRT or plugin than this machine's. Other engines pass.

    Raises:
        EngineError: both sides are named, and the command that builds it here.
        MissingLibrary: cuda-bindings or TensorRT is not installed.
    """
    if manifest.backend not in trust.PLANS:
        return
    from dpm_edge.gpu import probe
    from dpm_edge.runtime.gpu import compatibility
    from dpm_edge.runtime.gpu.library import load_library

    here = probe()
    if here is None:
        raise EngineError(
            f"expected a GPU for the engine in {folder}, got none that can be used. Open it on the machine it was "
            f"built for, or build one for the CPU: dpm-edge build {folder / PORTABLE} -o ENGINE"
        )
    compatibility.check(manifest, folder, here, load_library(manifest.backend).__version__)


def fits(manifest: Manifest, folder: Path) -> list[str]:
    """Every reason why this engine would be refused here; an empty list where it would be opened."""
    reasons = []
    checks: tuple[Callable[[Path], object], ...] = (
        manifest.check_files,
        lambda f: check_library(manifest, f),
        lambda f: check_gpu(manifest, f),
        lambda f: trust.check(manifest, f, trusted=False),
        read_golden,
    )
    for check in checks:
        try:
            check(folder)
        except (EngineError, MissingLibrary) as error:
            reasons.append(str(error))
    return reasons


def read_golden(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """The golden crop (H, W, 3) uint8 BGR, its feature (D,) and its mask (D,).

    Raises:
        EngineError: golden.npz is missing, damaged or a pickle.
    """
    path = folder / GOLDEN
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["crop"], stored["feature"], stored["mask"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise EngineError(f"{path} is missing or damaged ({error}). {rebuild_advice(folder)}") from error


def check_golden(
    manifest: Manifest, folder: Path, embed: Callable[[NDArray[np.uint8]], tuple[NDArray, NDArray]]
) -> float:
    """Run the crop that was stored at build time and compare; catches swapped colours and wrong normalisation.

    Returns the cosine of the two features.

    Raises:
        EngineError: the feature's cosine is below the manifest's `verification["golden_cosine"]` (0.99 without one).
    """
    crop, feature, mask = read_golden(folder)
    got, got_mask = embed(crop)
    least = float(manifest.verification.get("golden_cosine", GOLDEN_COSINE))
    if got.shape != feature.shape or got_mask.shape != mask.shape:
        raise EngineError(
            f"expected features of {feature.shape}, as the golden crop has, got {got.shape} of the engine in {folder}. "
            f"{rebuild_advice(folder)}"
        )
    norms = float(np.linalg.norm(got) * np.linalg.norm(feature))
    cosine = float(got @ feature) / norms if norms > 0 else 0.0
    if not cosine >= least:
        raise EngineError(
            f"the engine in {folder} does not recognise its golden crop: expected a cosine of {least:.4f} or more, got "
            f"{cosine:.4f}. Its colours, normalisation or numbers are not those it was built with. "
            + rebuild_advice(folder)
        )
    return cosine
