"""What watches a run while it trains: NaN, the log, the remaining time, the time budget."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from dpm_edge.errors import DpmError
from dpm_edge.progress import say
from dpm_edge.train import state
from dpm_edge.train.run import Run
from dpm_edge.train.state import RunLog

MEASURED_STEPS = (20, 60)
"""With a time budget: the steps between which the speed is measured."""
EVALUATION_RESERVE = 0.06
"""With a time budget: the share that is left for evaluations and saving."""


class LossIsNaN(DpmError):
    """The loss is not finite; the message names the file with the batch."""


class Watch:
    """Watches the steps: stops at NaN, logs, tells the remaining time, and fits the epochs to the time budget."""

    def __init__(self, run: Run, log: RunLog | None) -> None:
        self.run, self.log, self.begin, self.before = run, log, time.perf_counter(), run.step
        self.pending: tuple[int, dict[str, Tensor], Any] | None = None
        self.marks: dict[int, float] = {}

    def tick(self, terms: dict[str, Tensor], rows: Any, epoch: float) -> None:
        """After a step. The loss looked at is the one before, so that the GPU is not waited for."""
        run = self.run
        if self.pending is not None:
            self._stop_at_nan(*self.pending)
        self.pending = (run.step, terms, rows)
        taken = run.step - self.before
        if taken in MEASURED_STEPS:
            self._synchronise()
            self.marks[taken] = time.perf_counter()
            if run.config.schedule.minutes and len(self.marks) == 2 and self.before == 0:
                self._fit_epochs()
        if self.log is not None and (run.step % run.config.log_every == 0 or run.step == 1):
            values = {name: round(float(term), 6) for name, term in terms.items()}
            values["loss"] = round(sum(values.values()), 6)
            speed = taken * run.sampler.identities * run.sampler.pictures / (time.perf_counter() - self.begin)
            self.log.write("step", run.step, {**values, "epoch": round(epoch, 3), "pictures_per_second": round(speed, 1)})
            if not run.quiet and run.step % (10 * run.config.log_every) == 0:
                left = (run.epochs - epoch) * run.sampler.batches * (time.perf_counter() - self.begin) / taken
                text = " ".join(f"{k} {v:.3f}" for k, v in values.items())
                say(f"epoch {epoch:.1f}/{run.epochs} {text} · {speed:.0f} pictures/s · {left / 60:.1f} min left")

    def speed(self) -> float:
        """Pictures a second since the start of this process, evaluations included."""
        taken = self.run.step - self.before
        per_step = self.run.sampler.identities * self.run.sampler.pictures
        return taken * per_step / max(time.perf_counter() - self.begin, 1e-9)

    def _synchronise(self) -> None:
        if self.run.device.type == "cuda":
            torch.cuda.synchronize()

    def _fit_epochs(self) -> None:
        run = self.run
        first, second = (self.marks[m] for m in MEASURED_STEPS)
        per_step = (second - first) / (MEASURED_STEPS[1] - MEASURED_STEPS[0])
        seconds = 60 * run.config.schedule.minutes * (1 - EVALUATION_RESERVE) - (second - self.begin)
        steps = MEASURED_STEPS[1] + max(0.0, seconds / per_step)
        epochs = max(math.ceil(run.step / run.sampler.batches), int(steps / run.sampler.batches), 1)
        run.epochs = run.processes.agree(epochs)
        if not run.quiet:
            say(f"{1000 * per_step:.1f} ms a step: {run.epochs} epochs fill {run.config.schedule.minutes} minutes")

    def _stop_at_nan(self, step: int, terms: dict[str, Tensor], rows: Any) -> None:
        values = {name: float(term) for name, term in terms.items()}
        if all(math.isfinite(v) for v in values.values()):
            return
        run = self.run
        path = run.out / f"nan-batch-{step}.pt"
        names = [run.train.names[r] for r in rows.tolist()]
        state.save(path, {"step": step, "rows": torch.as_tensor(rows), "names": names, "terms": values})
        raise LossIsNaN(
            f"the loss of step {step} is not finite ({values}); its batch is in {path}. The last saved epoch is in "
            f"{run.out / state.RESUME}. Lower optimiser.lr, or look at the batch's pictures"
        )
