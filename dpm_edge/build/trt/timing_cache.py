"""TensorRT's timing cache on disk: what earlier builds measured, one file for each GPU, TensorRT and driver."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dpm_edge.files import write_whole
from dpm_edge.gpu import Gpu
from dpm_edge.progress import say

if TYPE_CHECKING:
    import tensorrt


def key(gpu: Gpu, tensorrt: str) -> str:
    """What the measurements of a cache hold for: the GPU, TensorRT's version and the driver."""
    text = f"{gpu.name} sm{gpu.compute_capability} tensorrt {tensorrt} driver {gpu.driver}"
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())


def load(path: Path, config: tensorrt.IBuilderConfig) -> None:
    """Give the builder the cache in `path`, or an empty one; a file that TensorRT refuses is not used, and says so."""
    stored = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        say(f"the timing cache {path} is damaged or of another TensorRT: starting a new one")
        config.set_timing_cache(config.create_timing_cache(b""), False)


def save(path: Path, config: tensorrt.IBuilderConfig) -> None:
    """Add what this build measured to the file. Builds that end at the same time wait for each other; readers never
    see half a file."""
    cache = config.get_timing_cache()
    with _locked(path):
        if path.is_file():
            other = config.create_timing_cache(path.read_bytes())
            if other is not None:
                cache.combine(other, False)
        write_whole(path, bytes(cache.serialize()))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, across processes and threads; the system frees it when its holder dies."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
