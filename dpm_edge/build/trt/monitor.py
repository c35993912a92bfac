"""Progress of a build with the remaining time, and Ctrl-C that stops it at the builder's next step."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from dpm_edge.progress import say

Result = TypeVar("Result")


@dataclass
class _Phase:
    """One phase of the build."""

    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The fraction of a build that is done, from the nested phases that the builder reports.

    Steps of a phase count alike, and a phase inside one moves it by a part of its current step: an estimate.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._reached = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins inside `parent`."""
        self._open[name] = _Phase(parent, max(1, steps))

    def step(self, name: str, step: int) -> None:
        """Step number `step`, counted from 0, of a phase is done."""
        if name in self._open:
            self._open[name].done = step + 1

    def finish(self, name: str) -> None:
        """A phase has ended."""
        self._open.pop(name, None)

    @property
    def current(self) -> str:
        """The phase that began last."""
        return next(reversed(self._open), "")

    @property
    def fraction(self) -> float:
        """0 to 1; never falls."""
        roots = [name for name, phase in self._open.items() if phase.parent not in self._open]
        self._reached = max([self._reached, *(self._of(name) for name in roots)])
        return self._reached

    def _of(self, name: str) -> float:
        phase = self._open[name]
        inside = max((self._of(child) for child, one in self._open.items() if one.parent == name), default=0.0)
        return min(1.0, (phase.done + inside) / phase.steps)


def progress_monitor(trt: ModuleType, *, quiet: bool) -> Any:
    """An IProgressMonitor with a bar on stderr; `stop()` ends the build at its next step, `close()` the bar.

    The builder may call it from threads of its own. Nothing is ever raised into it.
    """
    from tqdm import tqdm

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            rarely = {} if sys.stderr.isatty() else {"mininterval": 10, "maxinterval": 20}
            shape = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, about {remaining} to go"
            self._bar = tqdm(
                total=100,
                desc="building",
                bar_format=shape,
                delay=2,
                disable=quiet,
                file=sys.stderr,
                leave=False,
                **rarely,
            )
            self._phases = Phases()
            self._lock = threading.Lock()
            self._stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases.start(phase_name, parent_phase, num_steps)
                self._bar.set_description_str(f"building · {phase_name}", refresh=False)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                self._phases.step(phase_name, step)
                try:
                    self._bar.update(100 * self._phases.fraction - self._bar.n)
                except OSError:  # nobody reads stderr any more: no reason to stop building
                    self._bar.disable = True
                return not self._stopped

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.finish(phase_name)

        def stop(self) -> None:
            self._stopped = True

        def close(self) -> None:
            self._bar.close()

    return Monitor()


def stoppable(work: Callable[[], Result], stop: Callable[[], None]) -> Result:
    """Do `work` on a thread of its own, so that Ctrl-C is heard here; `stop` asks it to end early.

    Python delivers Ctrl-C to the main thread only, and an exception in a callback of TensorRT would end the process.

    Raises:
        KeyboardInterrupt: Ctrl-C came, and the work has ended since.
        Exception: whatever `work` raised.
    """
    result: list[Result] = []
    failure: list[BaseException] = []
    ready, ended, given_up = threading.Event(), threading.Event(), threading.Event()

    def run() -> None:
        try:
            ready.wait()
            if not given_up.is_set():
                result.append(work())
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="dpm-edge build", daemon=True)
    try:
        thread.start()
    except KeyboardInterrupt:  # the work has not begun
        given_up.set()
        ready.set()
        raise
    interrupted = False
    while not ended.is_set():
        try:
            ready.set()
            ended.wait(0.2)
        except KeyboardInterrupt:
            interrupted = True
            stop()
            say("stopping at the builder's next step")
    thread.join()
    if interrupted:
        raise KeyboardInterrupt
    if failure:
        raise failure[0]
    return result[0]
