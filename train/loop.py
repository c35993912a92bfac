"""Training: score the starting weights; then epoch by epoch step, log, evaluate, save.

B pictures of a batch · b = B / processes. Every draw depends on (seed, step) alone, so that a resumed run continues
exactly.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.train import optimisation, report, state
from dpm_edge.train.augment import augment, flip, photograph, shift_and_zoom
from dpm_edge.train.backgrounds import surround
from dpm_edge.train.covering import cover
from dpm_edge.train.criterion import Targets
from dpm_edge.train.data import to_input
from dpm_edge.train.run import Run, restore, snapshot
from dpm_edge.train.status import StatusLines, working
from dpm_edge.train.transfer import transfer
from dpm_edge.train.watch import Watch


def fit(run: Run) -> dict[str, Any]:
    """Train to the end, from the saved state if there is one. Returns the results, which are also in results.json."""
    resume_from = run.out / state.RESUME
    if resume_from.is_file():
        restore(run, state.load(resume_from, run.config))
    log = state.RunLog(run.out, run.config, keep_steps=run.step) if run.processes.first else None
    if run.processes.first and run.step == 0:
        with working("scoring the starting weights", quiet=run.quiet):
            report.score_start(run, log, resume_from)
    run.processes.wait()
    watch = Watch(run, log)
    with StatusLines(watch.line, quiet=run.quiet):
        while run.epoch < run.epochs:
            for number, rows in enumerate(torch.from_numpy(run.sampler.epoch(run.epoch)).to(run.device)):
                done = run.epoch + number / run.sampler.batches
                terms = train_step(run, rows, done)
                run.step += 1
                watch.tick(terms, rows, done)
            watch.stop_at_nan()
            run.epoch += 1
            last = run.epoch == run.epochs
            with watch.between_epochs():
                if run.processes.first and (last or run.epoch % run.config.evaluate.every == 0):
                    report.judge(run, log)
                if run.processes.first and (last or run.epoch % run.config.save_every == 0):
                    state.save(resume_from, snapshot(run))
                run.processes.wait()
    if not run.processes.first:
        return {}
    with working("scoring covered queries", quiet=run.quiet or not run.config.evaluate.occlusion):
        results = report.finish(run, watch.speed())
    assert log is not None
    log.close()
    return results


def train_step(run: Run, rows: Tensor, epoch: float) -> dict[str, Tensor]:
    """One batch: rows (B,) of the training pictures. Returns the loss's terms, scalars on the device."""
    config = run.config
    lr = config.optimiser.lr * optimisation.rate(config.schedule, epoch, run.epochs)
    optimisation.set_rate(run.steppers, lr)
    inputs, targets, cameras = batch_of(run, rows)
    terms: dict[str, Tensor] = {}
    for number, stepper in enumerate(run.steppers):  # one, or first the rest and then the mask generator
        torch.manual_seed((config.seed << 32) + 2 * run.step + number)
        torch.compiler.cudagraph_mark_step_begin()
        with autocast(run):
            out = run.forward(inputs, cameras)
        found = run.criterion(run.processes.gather(out), run.net, targets, epoch / run.epochs)
        values = torch.stack(list(found.values()))  # a copy: the next step may write over what compiled code returned
        optimisation.step(stepper, values.sum(), config.optimiser.clip, run.processes)
        terms = terms or dict(zip(found, values.detach().unbind()))
    if run.average is not None:
        run.average.update()
    return terms


def batch_of(run: Run, rows: Tensor) -> tuple[Tensor, Targets, Tensor | None]:
    """This process's inputs (b, 3, H, W), the global batch's targets, this process's cameras if the model has any."""
    config = run.config
    draw = torch.Generator(run.device).manual_seed((config.seed << 32) + run.step)
    if run.shares is not None:
        return covered_batch(run, rows, draw)
    pixels, masks = flip(run.train.pixels[rows].float(), run.masks[rows], config.augment.flip, draw)
    labels, donors = run.labels[rows], None
    if config.transfer.probability:
        mixed = transfer(pixels, masks, config.transfer, draw)
        pixels, donors = mixed.pixels, labels[mixed.donor]
    part = run.processes.part(len(rows))
    inputs = to_input(augment(pixels, config.augment, draw)[part], run.net.spec.preprocessing)
    cameras = None
    if run.net.spec.cameras:
        cameras = (run.cameras[rows] % run.net.spec.cameras)[part]
    people = labels[:: config.data.pictures]  # the sampler puts one person's pictures side by side
    return inputs, Targets(labels, donors, people), cameras


def covered_batch(run: Run, rows: Tensor, draw: torch.Generator) -> tuple[Tensor, Targets, Tensor | None]:
    """`batch_of` with exact masks: moves of both, other surroundings, something pasted, then light and noise."""
    config, grid = run.config, run.net.spec.grid
    assert run.shares is not None
    pixels, shares = run.train.pixels[rows].float(), run.shares[rows].float() / 255
    if shares.shape[2:] != pixels.shape[2:]:
        shares = F.interpolate(shares, size=pixels.shape[2:], mode="bilinear", align_corners=False)
    planes = torch.cat([pixels, shares], 1)
    turned = torch.rand(len(planes), generator=draw, device=draw.device) < config.augment.flip
    planes = torch.where(turned[:, None, None, None], planes.flip(3), planes)
    planes = shift_and_zoom(planes, config.augment, draw)
    if config.augment.background:
        assert run.backgrounds is not None
        planes = surround(planes, run.backgrounds, config.augment.background, draw)
    done = cover(planes, config.covering, draw, run.backgrounds if config.covering.clutter else None)
    shares = F.adaptive_avg_pool2d(done.planes[:, 3:], grid)
    shares = torch.stack([shares[:, 0], (shares[:, 1] - shares[:, 0]).clamp(min=0)], 1)
    part = run.processes.part(len(rows))
    inputs = to_input(photograph(done.planes[:, :3], config.augment, draw)[part], run.net.spec.preprocessing)
    labels = run.labels[rows]
    people = labels[:: config.data.pictures]
    taught = None if run.taught is None else run.taught[rows]
    targets = Targets(labels, None, people, covered=done.covered, shares=shares, taught=taught)
    return inputs, targets, None


def autocast(run: Run) -> torch.autocast:
    """bfloat16 on a GPU if the config says so."""
    enabled = run.device.type == "cuda" and run.config.optimiser.bf16
    return torch.autocast(run.device.type, torch.bfloat16, enabled=enabled)


def wait_for_gpu(device: torch.device) -> None:
    """Until all that was launched is done; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
