"""What watches a run while it trains: NaN, the log, the remaining time, the time budget."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dpm_edge.errors import DpmError
from dpm_edge.progress import say
from dpm_edge.train import state
from dpm_edge.train.report import seconds_at_the_end, seconds_of_an_evaluation
from dpm_edge.train.run import Run
from dpm_edge.train.state import RunLog
from dpm_edge.train.status import EVERY

MEASURED_STEPS = (20, 60)
"""With a time budget: the steps between which the speed is measured."""
RESERVE = 0.03
"""With a time budget: the share of it that is left for what no estimate foresees."""


class LossIsNaN(DpmError):
    """The loss is not finite; the message names the file with the batch."""


def epochs_that_fit(
    seconds: float,
    *,
    per_step: float,
    steps_done: int,
    batches: int,
    every: int,
    evaluation: float,
    saving: float = 0.0,
) -> int:
    """Count the epochs that end within `seconds` from now; never fewer than those that are begun, and at least one.

    Args:
        seconds: what is left of the budget.
        per_step: seconds of a step.
        steps_done: steps since the first epoch's beginning.
        batches: steps of an epoch.
        every: epochs between evaluations; the last epoch is evaluated too.
        evaluation: seconds of an evaluation.
        saving: seconds that each epoch's share of saving takes.
    """
    least, over = max(1, math.ceil(steps_done / batches)), steps_done // batches

    def cost(epochs: int) -> float:
        evaluations = math.ceil(epochs / every) - over // every
        return (epochs * batches - steps_done) * per_step + evaluations * evaluation + (epochs - over) * saving

    epochs = max(least, int((seconds / per_step + steps_done) / batches))  # as if evaluations were free
    while epochs > least and cost(epochs) > seconds:
        epochs -= max(1, int((cost(epochs) - seconds) / (batches * per_step + evaluation + saving)))
    return max(least, epochs)


def _numbers(terms: dict[str, Tensor]) -> dict[str, float]:
    """The terms of a step and their sum, read from the device."""
    values = {name: round(v, 6) for name, v in zip(terms, torch.stack(list(terms.values())).tolist())}
    return {**values, "loss": round(sum(values.values()), 6)}


class Watch:
    """Watches the steps: stops at NaN, logs, tells the remaining time, and fits the epochs to the time budget."""

    def __init__(self, run: Run, log: RunLog | None) -> None:
        self.run, self.log, self.begin, self.before = run, log, time.perf_counter(), run.step
        self.unseen: list[tuple[int, dict[str, Tensor], Tensor]] = []
        self.marks: dict[int, float] = {}
        self.epoch, self.losses, self.doing = float(run.epoch), "", ""
        """For `line`: where the training is, the losses of the last log line, and what is done between steps."""
        self.shown = 0.0
        """When the losses of the line were read."""
        self.between = 0.0
        """Seconds since the beginning that were spent between epochs."""

    def line(self) -> str:
        """Say where the training is: epoch, losses, speed, remaining time. Reads nothing from the device."""
        run, taken = self.run, self.run.step - self.before
        where = f"epoch {self.epoch:.1f}/{run.epochs}"
        if self.doing or not taken:
            return (
                f"{where}: {self.doing or 'the first step'}, {time.perf_counter() - self.begin:.0f} s since the start"
            )
        left = (run.epochs - self.epoch) * run.sampler.batches * (time.perf_counter() - self.begin) / taken
        return f"{where} {self.losses} · {self.speed():.0f} pictures/s · {left / 60:.1f} min left to train"

    def tick(self, terms: dict[str, Tensor], rows: Tensor, epoch: float) -> None:
        """After a step. Losses are looked at every `log_every` steps, so that a GPU is not waited for in between."""
        run = self.run
        self.epoch = epoch
        self.unseen.append((run.step, terms, rows))
        if run.step % run.config.log_every == 0:
            self.stop_at_nan()
        taken = run.step - self.before
        if taken in MEASURED_STEPS:
            self._synchronise()
            self.marks[taken] = time.perf_counter() - self.between
            if run.config.schedule.minutes and len(self.marks) == 2 and self.before == 0:
                self._fit_epochs()
        if self.log is not None and (run.step % run.config.log_every == 0 or run.step == 1):
            values = _numbers(terms)
            self._show(values)
            rates = {"epoch": round(epoch, 3), "pictures_per_second": round(self.speed(), 1)}
            self.log.write("step", run.step, {**values, **rates})
        elif not run.quiet and time.perf_counter() - self.shown > EVERY:  # slow steps: the line is not to lag behind
            self._show(_numbers(terms))

    def _show(self, values: dict[str, float]) -> None:
        """Take these losses for the next lines."""
        self.losses, self.shown = " ".join(f"{k} {v:.3f}" for k, v in values.items()), time.perf_counter()

    @contextmanager
    def between_epochs(self) -> Iterator[None]:
        """Scoring and saving: no time of any step."""
        begin, self.epoch, self.doing = time.perf_counter(), float(self.run.epoch), "scoring and saving"
        yield
        self.between += time.perf_counter() - begin
        self.doing = ""

    def speed(self) -> float:
        """Pictures a second since the start of this process, evaluations included."""
        taken = self.run.step - self.before
        per_step = self.run.sampler.identities * self.run.sampler.pictures
        return taken * per_step / max(time.perf_counter() - self.begin, 1e-9)

    def _synchronise(self) -> None:
        if self.run.device.type == "cuda":
            torch.cuda.synchronize()

    def _fit_epochs(self) -> None:
        """Set the run's epochs to what its budget leaves; the first process measures for all."""
        run = self.run
        first, second = (self.marks[m] for m in MEASURED_STEPS)
        per_step = (second - first) / (MEASURED_STEPS[1] - MEASURED_STEPS[0])
        ending = seconds_at_the_end(run) if run.processes.first else 0.0
        spent = time.perf_counter() - run.begin
        epochs = epochs_that_fit(
            60 * run.config.schedule.minutes * (1 - RESERVE) - spent - ending,
            per_step=per_step,
            steps_done=run.step,
            batches=run.sampler.batches,
            every=run.config.evaluate.every,
            evaluation=seconds_of_an_evaluation(run),
            saving=run.costs.saving / run.config.save_every if run.costs is not None else 0.0,
        )
        run.epochs = run.processes.agree(epochs)
        if not run.quiet:
            say(
                f"{1000 * per_step:.1f} ms a step: {run.epochs} epochs fill {run.config.schedule.minutes:g} minutes; "
                f"{spent / 60:.1f} are over and {ending / 60:.1f} are kept for covered queries at the end"
            )

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
