"""One engine under measurement, in a process of its own (`Apart`): answers with plain numbers and arrays."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dpm_edge.bench import nvml
from dpm_edge.bench.cameras import Load, Seen, run_cameras
from dpm_edge.bench.load import Calls, closed
from dpm_edge.bench.scene import compose, crops, fill, sample_people
from dpm_edge.gallery import Gallery
from dpm_edge.runtime.engine import Engine


class Subject:
    """An open engine, the crops and the frame that it is measured with, and a gallery of its own."""

    def __init__(self, folder: Path, device: str | None, threads: int | None, rows: int) -> None:
        """Open the engine of `folder` and fill a gallery of `rows` rows.

        Raises:
            DpmError: the engine cannot be opened here, or the samples are missing.
        """
        start = time.perf_counter()
        self._engine = Engine.load(folder, device=device, threads=threads)
        self._opened = time.perf_counter() - start
        self._scene = compose(sample_people())
        self._gallery = Gallery.for_engine(self._engine)
        people = self._engine.embed(self._scene.frame, self._scene.boxes)
        fill(self._gallery, people, self._scene, rows)
        for n in (1, len(people)):
            self._gallery.search(people.take(slice(n)), 1)  # the first search of each kind may compile

    def opened(self) -> dict[str, Any]:
        """Where the engine runs, and the seconds that opening it took, its golden crop included."""
        return {"device": self._engine.device, "opened_in_s": round(self._opened, 2)}

    def engine_only(self, batch: int, streams: int, seconds: float) -> Calls:
        """`Engine.embed` of `batch` crops that are cut out already, from `streams` threads."""
        some = crops(self._scene, batch)
        return closed(lambda: self._engine.embed(some), streams=streams, seconds=seconds)

    def end_to_end(self, load: Load, seed: int) -> Seen:
        """Cameras through the batcher and the gallery."""
        return run_cameras(self._engine, self._gallery, self._scene, load, seed=seed)

    def memory(self) -> dict[str, Any]:
        """Megabytes of this process: resident now, at its highest, and on the GPU; None where nothing says so."""
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.is_file() else []
        kb = {line.split(":")[0]: float(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        return {
            "resident_mb": _mb(kb.get("VmRSS")),
            "highest_mb": _mb(kb.get("VmHWM")),
            "gpu_mb": nvml.memory_of_this_process(),
        }


def _mb(kb: float | None) -> float | None:
    return None if kb is None else round(kb * 1024 / 1e6, 1)
