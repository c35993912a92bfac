"""One engine under measurement in a process of its own: its threads disturb nobody else's timing, and its memory is its
own. It answers with plain numbers and arrays.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from dpm_edge.bench.cameras import CameraLoad, CameraTimes, compose, crops, fill, run_cameras, sample_people
from dpm_edge.bench.load import ClosedLoop, closed_loop
from dpm_edge.bench.machine import gpu_memory_of_this_process
from dpm_edge.errors import DpmError
from dpm_edge.gallery import Gallery
from dpm_edge.runtime.engine import Engine


class WorkerProcess:
    """Makes an object in a fresh process and calls its methods there, one at a time.

    Use it as a context manager; leaving it ends the process.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, name: str) -> None:
        """Start the process and make `make(*arguments)` there; `name` stands in errors.

        Raises:
            DpmError: making it failed; the message is the one from there.
        """
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """What that method returns there.

        Raises:
            DpmError: it failed there, or the process has died.
        """
        try:
            self._pipe.send((method, arguments))
        except OSError as error:
            raise self._died() from error
        return self._answer()

    def close(self) -> None:
        """End the process, in the middle of a call too; a second call does nothing."""
        self._pipe.close()
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            fine, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if not fine:
            raise DpmError(f"{self._name}: {answer}")
        return answer

    def _died(self) -> DpmError:
        self._process.join(5)
        return DpmError(f"the process of {self._name} ended by itself, with exit code {self._process.exitcode}")


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Make the object, then answer calls until the other end is closed."""
    served = None
    call: Callable[..., Any] = make
    while True:
        try:
            answer = call(*arguments)
            if served is None:
                served, answer = answer, None
            pipe.send((True, answer))
        except KeyboardInterrupt:
            return
        except BrokenPipeError:
            return
        except Exception as error:
            pipe.send((False, str(error) if isinstance(error, DpmError) else f"{type(error).__name__}: {error}"))
            if served is None:
                return
        try:
            method, arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        call = getattr(served, method)


class EngineUnderTest:
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

    def engine_only(self, batch: int, streams: int, seconds: float) -> ClosedLoop:
        """`Engine.embed` of `batch` crops that are cut out already, from `streams` threads."""
        some = crops(self._scene, batch)
        return closed_loop(lambda: self._engine.embed(some), streams=streams, seconds=seconds)

    def end_to_end(self, load: CameraLoad, seed: int) -> CameraTimes:
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
            "gpu_mb": gpu_memory_of_this_process(),
        }


def _mb(kb: float | None) -> float | None:
    return None if kb is None else round(kb * 1024 / 1e6, 1)
