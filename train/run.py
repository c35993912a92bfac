"""One training run: what it consists of, how it is prepared, how it is put away and taken up again."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpm_edge.errors import DataError, SpecError, nearest
from dpm_edge.layouts import Dataset, read_dataset, take
from dpm_edge.market import LabelledFolder
from dpm_edge.model.network import DPM, DPMOutput
from dpm_edge.train import distributed, optimisation
from dpm_edge.train.augment import mix_styles
from dpm_edge.train.backgrounds import surroundings
from dpm_edge.train.config import COMPILED, Config
from dpm_edge.train.criterion import Criterion
from dpm_edge.train.data import IdentitySampler, Pictures, decode, visible_shares
from dpm_edge.train.moving_average import MovingAverage
from dpm_edge.train.prompts import load_texts
from dpm_edge.train.saliency.labels import pixel_shares
from dpm_edge.train.saliency.person_masks import person_masks
from dpm_edge.train.sight import TAUGHT, run_frozen_stages, teach
from dpm_edge.train.start import NEEDED, model_spec, network


@dataclass(frozen=True)
class EvaluationCosts:
    """Seconds of what is done between epochs."""

    embedding: float
    """Queries and gallery."""
    ranking: float
    """The gallery for every query, under both metrics."""
    saving: float = 0.0
    """The state to resume from."""


@dataclass
class Run:
    """Everything that lives as long as one training run."""

    config: Config
    out: Path
    device: torch.device
    processes: distributed.Processes
    net: DPM
    average: MovingAverage | None
    steppers: list[torch.optim.AdamW]
    criterion: Criterion
    forward: Callable[..., DPMOutput]
    train: Pictures
    labels: Tensor
    cameras: Tensor
    masks: Tensor
    query: Pictures
    gallery: Pictures
    sampler: IdentitySampler
    epochs: int
    described: str = ""
    """The training pictures in words, for the checkpoint's card."""
    shares: Tensor | None = None
    """(N, 2, H, W) uint8, 255 for all of a pixel: the person seen, and the person if nothing stood in front. May be
    smaller than the pictures."""
    taught: Tensor | None = None
    """(N, T) float32: a teacher's features of the training pictures."""
    backgrounds: Tensor | None = None
    """(M, 3, H, W) uint8: surroundings to put people into."""
    quiet: bool = False
    begin: float = field(default_factory=time.perf_counter)
    """When the run's preparation began: a budget of minutes counts from there."""
    start: dict[str, Any] = field(default_factory=dict)
    """Scores of the starting weights, and which weights these are; empty until they are scored."""
    costs: EvaluationCosts | None = None
    """Seconds that scoring the starting weights took; None in a run that was resumed."""
    epoch: int = 0
    step: int = 0
    best: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def judged(self) -> DPM:
        """The network that is evaluated and kept: the averaged one if there is one."""
        return self.average.module if self.average is not None else self.net


def prepare(config: Config, data: Path, out: Path, *, quiet: bool = False) -> Run:
    """Prepare everything up to the first step: pictures in memory, saliency masks if SPT is on, network, optimisers.

    Raises DataError for a data set that cannot be trained on, SpecError for a recipe that lacks a file.
    """
    begin = time.perf_counter()
    device = device_of(config)
    processes = distributed.start(device)
    device = distributed.local_device(device)
    quiet = quiet or not processes.first
    _check_texts(config)
    _check_coarser(config)
    out.mkdir(parents=True, exist_ok=True)
    pre = model_spec(config.model).preprocessing
    people = training_set(config, data)
    train, query, gallery = (
        decode(part, pre, config.data.decode_workers, quiet) for part in (people.train, people.query, people.gallery)
    )
    train, query, gallery = train.to(device), query.to(device), gallery.to(device)
    labels = train.labels()
    sampler = IdentitySampler(labels.numpy(), config.data.identities, config.data.pictures, config.seed)
    net = network(config.model, len(sampler.rows), int(train.cameras.max()) + 1, config.seed).to(device)
    texts = _texts(config, train)
    grid = net.spec.grid
    if config.transfer.probability:
        masks = processes.first_then_others(lambda: person_masks(config, train, data, out, device, quiet))
    else:
        masks = torch.zeros((len(train), *grid), dtype=torch.bool, device=device)
    if processes.world > 1:
        distributed.share_batch_norm(net)
    optimisation.freeze(net, config.optimiser, masked=config.loss.masked, text=texts is not None)
    mix_styles(net, config.augment)
    shares = taught = backgrounds = None
    if config.covering.probability or config.loss.visibility or config.augment.background:
        if config.saliency.source != "labels":
            raise SpecError(
                "expected saliency.source=labels with covering, loss.visibility or augment.background, got "
                f"{config.saliency.source!r}: they need exact masks, which a set has that dpm_edge.train.synthetic "
                "rendered"
            )
        if config.transfer.probability:
            raise SpecError("expected transfer.probability=0 with covering, got both. Choose one of the two")
        shares = pixel_shares(data, train, (pre.height, pre.width)).to(device)
        if config.augment.background or config.covering.clutter:
            backgrounds = surroundings(config, pre, quiet).to(device)
    if config.loss.distil or config.loss.own:
        taught = teach(config.loss.teacher, people.train, train.names, out / TAUGHT, quiet).to(device)
        if config.loss.own and taught.shape[1] != net.spec.dimension:
            raise SpecError(
                f"expected a loss.teacher with features of {net.spec.dimension} dimensions for loss.own, as the "
                f"network's, got {taught.shape[1]}. Start from the teacher itself (model.init), or use loss.distil"
            )
    made = Run(
        config=config,
        out=out,
        device=device,
        processes=processes,
        net=net,
        average=MovingAverage(net, config.optimiser.ema) if config.optimiser.ema else None,
        steppers=optimisation.optimisers(net, config.optimiser),
        criterion=Criterion(config.loss, texts.to(device) if texts is not None else None, config.optimiser.compile),
        forward=forward_of(net, config.optimiser.compile, processes.world),
        train=train,
        labels=labels.to(device),
        cameras=train.cameras.to(device),
        masks=masks,
        query=query,
        gallery=gallery,
        sampler=sampler,
        epochs=config.schedule.epochs,
        described=f"{data.resolve().name}, layout {people.layout}: {len(sampler.rows)} people, {len(train)} pictures",
        shares=shares,
        taught=taught,
        backgrounds=backgrounds,
        quiet=quiet,
        begin=begin,
    )
    run_frozen_stages(net, device)
    return made


def device_of(config: Config) -> torch.device:
    """Choose the config's device; "auto" is a GPU where there is one."""
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class TrainingSet(Dataset):
    """A data set that can be trained on."""

    train: LabelledFolder


def training_set(config: Config, data: Path) -> TrainingSet:
    """Read the data set, its training part cut down as the config says. Raises DataError where it has none."""
    found = read_dataset(data, config.data.layout, train=True)
    train = found.train
    if train is None:
        raise DataError(
            f"expected a data set with a training part, got {data} of layout {found.layout!r} with none. Add "
            f"{'train/PERSON/CAMERA/' if found.layout == 'cameras' else 'bounding_box_train/'}, or give another --data"
        )
    if config.data.min_visible:
        train = take(train, visible_shares(train, data / "labels.csv") >= config.data.min_visible)
    if config.data.limit_identities:
        kept = sorted(set(train.people.tolist()))[: config.data.limit_identities]
        train = take(train, [p in set(kept) for p in train.people.tolist()])
    return TrainingSet(found.layout, found.query, found.gallery, train)


def forward_of(net: DPM, mode: str, world: int) -> Callable[..., DPMOutput]:
    """Give the network's training forward, compiled where `mode` says so.

    Raises SpecError for an unknown mode, or for any with many processes: batch norm over the global batch talks to the
    others, which a compiled forward cannot.
    """
    if mode not in COMPILED:
        raise SpecError(f"expected a mode of optimiser.compile, got {mode!r}.{nearest(mode, COMPILED)}")
    if mode and world > 1:
        raise SpecError(
            f"expected one process with optimiser.compile={mode}, got {world}. Set optimiser.compile= to train on many"
        )
    return torch.compile(net.forward_train, mode=mode) if mode else net.forward_train


def _check_texts(config: Config) -> None:
    """Raise SpecError at once where a loss asks for texts and no file is named."""
    if (config.loss.i2t or config.loss.anchor) and config.loss.texts in ("", NEEDED):
        raise SpecError(
            "expected a file of texts for loss.i2t and loss.anchor, got none. Run `dpm-edge train texts` with CLIP "
            "weights first and give loss.texts=FILE, or set loss.i2t=0 loss.anchor=0"
        )


def _check_coarser(config: Config) -> None:
    """Raise SpecError where a factor of `augment.coarser` would not lower the resolution."""
    factors = config.augment.coarser
    if config.augment.blur and not (factors and all(1 <= factor < math.inf for factor in factors)):
        raise SpecError(
            f"expected factors of 1 or more in augment.coarser with augment.blur={config.augment.blur:g}, got "
            f"{','.join(f'{factor:g}' for factor in factors) or 'none'}. Give some, such as augment.coarser=1.5,2"
        )


def _texts(config: Config, train: Pictures) -> Tensor | None:
    """T (C, J) on the CPU, or None where no loss asks for texts."""
    if not config.loss.i2t and not config.loss.anchor:
        return None
    return load_texts(Path(config.loss.texts), torch.unique(train.people))


def snapshot(run: Run) -> dict[str, Any]:
    """Collect all that a resumed run needs."""
    return {
        "config": json.dumps(run.config.to_dict()),
        "epoch": run.epoch,
        "step": run.step,
        "epochs": run.epochs,
        "best": run.best,
        "start": json.dumps(run.start),
        "history": json.dumps(run.history),
        "net": run.net.state_dict(),
        "average": run.average.state_dict() if run.average is not None else {},
        "steppers": [s.state_dict() for s in run.steppers],
    }


def restore(run: Run, saved: dict[str, Any]) -> None:
    """Put a snapshot back into a freshly prepared run."""
    run.epoch, run.step, run.epochs, run.best = (saved[k] for k in ("epoch", "step", "epochs", "best"))
    run.start, run.history = json.loads(saved.get("start", "{}")), json.loads(saved["history"])
    run.net.load_state_dict(saved["net"])
    if run.average is not None:
        run.average.load_state_dict(saved["average"])
    for stepper, kept in zip(run.steppers, saved["steppers"]):
        stepper.load_state_dict(kept)
