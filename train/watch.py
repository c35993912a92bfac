"""What watches a run while it trains: NaN, the log, the remaining time, the time budget."""

from __future__ import annotations

import math
import time

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
        self.unseen: list[tuple[int, dict[str, Tensor], Tensor]] = []
        self.marks: dict[int, float] = {}

    def tick(self, terms: dict[str, Tensor], rows: Tensor, epoch: float) -> None:
        """After a step. Losses are looked at every `log_every` steps, so that a GPU is not waited for in between."""
        run = self.run
        self.unseen.append((run.step, terms, rows))
        if run.step % run.config.log_every == 0:
            self.stop_at_nan()
        taken = run.step - self.before
        if taken in MEASURED_STEPS:
            self._synchronise()
            self.marks[taken] = time.perf_counter()
            if run.config.schedule.minutes and len(self.marks) == 2 and self.before == 0:
                self._fit_epochs()
        if self.log is not None and (run.step % run.config.log_every == 0 or run.step == 1):
            values = {name: round(v, 6) for name, v in zip(terms, torch.stack(list(terms.values())).tolist())}
            values["loss"] = round(sum(values.values()), 6)
            speed = taken * run.sampler.identities * run.sampler.pictures / (time.perf_counter() - self.begin)
            self.log.write(
                "step", run.step, {**values, "epoch": round(epoch, 3), "pictures_per_second": round(speed, 1)}
            )
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

    def stop_at_nan(self) -> None:
        """Raise LossIsNaN for the first step since the last look whose loss is not finite; its batch is saved."""
        seen, self.unseen = self.unseen, []
        if not seen or bool(
            torch.isfinite(torch.stack([torch.stack(list(terms.values())).sum() for _, terms, _ in seen])).all()
        ):
            return
        step, terms, rows = next(s for s in seen if not math.isfinite(float(sum(s[1].values()))))
        run = self.run
        values = {name: float(term) for name, term in terms.items()}
        path = run.out / f"nan-batch-{step}.pt"
        names = [run.train.names[r] for r in rows.tolist()]
        state.save(path, {"step": step, "rows": rows.cpu(), "names": names, "terms": values})
        raise LossIsNaN(
            f"the loss of step {step} is not finite ({values}); its batch is in {path}. The last saved epoch is in "
            f"{run.out / state.RESUME}. Lower optimiser.lr, or look at the batch's pictures"
        )
