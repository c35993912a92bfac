"""Rounds of adaptation: embed, centre by camera, cluster, contrast against the clusters' means.

n crops · B pictures of a batch · C clusters · D dimensions
"""

from __future__ import annotations

import copy
import io
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import CheckpointError, DataError
from dpm_edge.files import write_whole
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import AnyNetwork, ForeignNetwork
from dpm_edge.model.stem import STAGES, ConvStem
from dpm_edge.progress import say, track
from dpm_edge.train import losses
from dpm_edge.train.adapt.clusters import cluster, of_tracks
from dpm_edge.train.adapt.constraints import constrained
from dpm_edge.train.adapt.contrast import ClusterMemory
from dpm_edge.train.adapt.covers import PassersBy, cover_crops, find_passers_by
from dpm_edge.train.adapt.crops import Crops
from dpm_edge.train.data import IdentitySampler, to_input
from dpm_edge.train.evaluate import embed
from dpm_edge.train.sight import run_frozen_stages

RESUME = "adapt-resume.pt"
MAY_CHANGE = ("minutes", "shapes", "passers_by")
FROZEN_STAGES = 3
"""Lower stages of a convolutional stem that do not learn, as in `rendered_nano`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a checkpoint is adapted."""

    minutes: float = 60.0
    """Time for the rounds, embedding and clustering included. A round that has begun is ended."""
    rounds: int = 12
    """Rounds at most."""
    passes: float = 2.0
    """How often a round shows as many pictures as there are clustered crops."""
    people: int = 16
    """Clusters in a batch."""
    pictures: int = 4
    """Pictures of each."""
    lr: float = 3e-4
    """AdamW's learning rate; falls by a cosine to a tenth, over the rounds or, where they are fewer, those that the
    minutes leave time for."""
    weight_decay: float = 5e-4
    temperature: float = 0.05
    momentum: float = 0.1
    """How much of a cluster's old vector stays when a batch shows it."""
    cover: float = 0.5
    """Share of the pictures of a batch that something is put in front of."""
    shapes: float = 0.35
    """Share of those things that are shapes of all kinds (dpm_edge.train.adapt.covers)."""
    passers_by: float = 0.35
    """Share of those things that are other people of the site, cut out; the rest are boxes."""
    own: float = 4.0
    """Weight of drawing each of those pictures to its own centred feature of the round's start, uncovered [R]."""
    agreement: float = 0.2
    """Weight of the mask generator's lesson (`losses.agreement`)."""
    map_kept: float = 1.0
    """Weight of keeping the map of what is seen, where the model has one: the target is the checkpoint's own map of the
    uncovered picture, less what was put in front."""
    neighbours: int = 20
    """Nearest crops that are looked at for reciprocal neighbours."""
    query_neighbours: int = 6
    """Nearest crops over which neighbourhoods are averaged."""
    eps: float = 0.5
    """Largest Jaccard distance between neighbours of one cluster."""
    least: int = 4
    """Crops that make a cluster."""
    seed: int = 0


@dataclass
class State:
    """What lives from round to round."""

    net: AnyNetwork
    optimiser: torch.optim.AdamW
    first: AnyNetwork
    """The checkpoint as it came; its map of what is seen is kept."""
    passers_by: PassersBy | None = None
    """Who can stand in front."""
    round: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def adapt(
    net: AnyNetwork, crops: Crops, plan: Plan, out: Path, *, quiet: bool = False
) -> tuple[AnyNetwork, list[dict[str, Any]]]:
    """A copy of `net` adapted to the crops, and a row of numbers for each round. Resumes from `out` if it can.

    On a GPU where torch finds one; the copy that is returned is on the CPU.

    Raises:
        DataError: the crops fall into fewer clusters than two batches need: too few people, or nobody in them.
        CheckpointError: `out` holds the state of another adaptation.
    """
    state = _start(net, plan)
    resume = out / RESUME
    if resume.is_file():
        _restore(state, resume, net, crops, plan)
        if not quiet:
            say(f"going on after round {state.round} of {plan.rounds}")
    if _goes_on(state, plan) and plan.passers_by and plan.cover:
        state.passers_by = find_passers_by(crops.pictures, plan.seed, quiet=quiet)
    while _goes_on(state, plan):
        began = time.perf_counter()
        row = _round(state, crops, plan, quiet)
        state.round += 1
        state.seconds += time.perf_counter() - began
        row["seconds"] = round(time.perf_counter() - began, 1)
        state.history.append(row)
        _save(state, resume, net, crops, plan)
        if not quiet:
            say(
                f"round {state.round} of about {planned_rounds(state, plan)}: {row['clusters']} clusters hold "
                f"{100 * row['clustered']:.0f} % of the crops, loss {row['loss']:.3f}, {row['seconds']:.0f} s; "
                f"{max(0, plan.minutes - state.seconds / 60):.0f} min left"
            )
    adapted = state.net.eval()
    if not adapted.spec.masks:
        return adapted.cpu(), state.history
    sample = crops.pictures.pixels[:: max(1, len(crops) // 1000)]
    adapted.spec = adapted.spec.replace(mask_mean=float(embed(adapted, sample)[1].mean()))
    return adapted.cpu(), state.history


def _goes_on(state: State, plan: Plan) -> bool:
    return state.round < plan.rounds and state.seconds < 60 * plan.minutes


def planned_rounds(state: State, plan: Plan) -> int:
    """Rounds that there will be: as many as the minutes leave time for, by the time of those done, or the plan's."""
    if not state.round:
        return plan.rounds
    return min(plan.rounds, max(state.round + 1, math.ceil(60 * plan.minutes * state.round / state.seconds)))


def statistics(net: AnyNetwork, features: NDArray, cameras: list[str]) -> CameraStatistics:
    """The cameras' means of features (n, D) under this model."""
    made = CameraStatistics(fingerprint=checkpoint.fingerprint(net), dimension=features.shape[1])
    made.add(features, cameras)
    return made


def features_of(net: AnyNetwork, pixels: Tensor, *, what: str, quiet: bool) -> NDArray[np.float32]:
    """Features (n, D), L2-normalised, of pixels (n, 3, H, W) uint8, with progress."""
    parts = pixels.split(64)
    found = [embed(net, part)[0].cpu().numpy() for part in track(parts, what=what, total=len(parts), quiet=quiet)]
    return np.concatenate(found)


def pseudo_labels(
    net: AnyNetwork, crops: Crops, plan: Plan, *, quiet: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.float32], Tensor]:
    """Clusters (n,), centred features (n, D), and the camera means (cameras, D) that were taken off.

    Raises:
        DataError: fewer clusters than a batch wants.
    """
    features = features_of(net, crops.pictures.pixels, what="embed the crops", quiet=quiet)
    known = statistics(net, features, crops.names_of_cameras())
    centred = known.centre(features, crops.names_of_cameras())
    labels = cluster(centred, k=plan.neighbours, k_query=plan.query_neighbours, eps=plan.eps, least=plan.least)
    if crops.tracked:
        labels = of_tracks(labels, crops.tracks)
    labels = constrained(_without_gaps(labels), crops.tracks, centred, crops.constraints(), plan.least)
    found = int(labels.max()) + 1
    if found < plan.people:
        raise DataError(
            f"expected {plan.people} groups of crops that look like one person each, got {found} among {len(crops)} "
            f"crops. Give crops of more people and cameras; pictures without people teach nothing"
        )
    means = np.stack([known.mean(name) for name in crops.camera_names]).astype(np.float32)
    return labels, centred, torch.from_numpy(means)


def _without_gaps(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The labels numbered 0..C−1 without gaps; −1 stays."""
    values, numbered = np.unique(labels, return_inverse=True)
    return numbered.astype(np.int64) - int(values[0] == -1)


def _round(state: State, crops: Crops, plan: Plan, quiet: bool) -> dict[str, Any]:
    torch.manual_seed((plan.seed << 32) + state.round)
    labels, centred, means = pseudo_labels(state.net.eval(), crops, plan, quiet=quiet)
    device = next(state.net.parameters()).device
    known = Round(torch.from_numpy(labels), torch.from_numpy(centred), means.to(device), state.passers_by)
    memory = ClusterMemory(known.centred, known.labels, momentum=plan.momentum, temperature=plan.temperature)
    memory.vectors = memory.vectors.to(device)
    sampler = IdentitySampler(labels, plan.people, plan.pictures, plan.seed)
    steps = max(1, round(plan.passes * int((labels >= 0).sum()) / (plan.people * plan.pictures)))
    batches = np.concatenate([sampler.epoch(1000 * state.round + i) for i in range(1 + steps // sampler.batches)])[
        :steps
    ]
    rate = plan.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * state.round / planned_rounds(state, plan))))
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.net.train()
    draw = np.random.default_rng((plan.seed, state.round))
    spent = []
    for rows in track(torch.from_numpy(batches), what=f"round {state.round + 1}", total=len(batches), quiet=quiet):
        spent.append(_step(state, known.batch(crops, rows, plan, draw), memory, plan))
    counts = np.bincount(labels[labels >= 0])
    cameras_of = [len(np.unique(crops.cameras[labels == c])) for c in range(len(counts))]
    return {
        "clusters": len(counts),
        "clustered": float((labels >= 0).mean()),
        "clusters of several cameras": float(np.mean(np.array(cameras_of) > 1)),
        "largest cluster": int(counts.max()),
        "loss": float(np.mean(spent)),
        "lr": rate,
        "steps": len(batches),
    }


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step learns from, on the network's device."""

    before: Tensor
    """(B, 3, H, W) uint8: the pictures with nothing put in front."""
    pixels: Tensor
    """(B, 3, H, W) uint8: the pictures that the network sees."""
    under: Tensor
    """(B, H, W) float32: how much of each pixel is under something."""
    covered: Tensor
    """(B,) bool: which were chosen to have something put in front; a few of them stay whole."""
    labels: Tensor
    """(B,) int64: the cluster of each."""
    own: Tensor
    """(B, D) float32, L2-normalised: the centred feature of each one's uncovered crop when the round began."""
    means: Tensor
    """(B, D) float32: the mean of each one's camera."""


@dataclass(frozen=True)
class Round:
    """What a round knows of all crops, and of what can stand in front of them."""

    labels: Tensor
    """(n,) int64: the cluster of each crop, −1 for none."""
    centred: Tensor
    """(n, D) float32: their features when the round began."""
    means: Tensor
    """(cameras, D) float32: what was taken off them, on the network's device."""
    passers_by: PassersBy | None

    def batch(self, crops: Crops, rows: Tensor, plan: Plan, draw: np.random.Generator) -> Batch:
        """The crops `rows` (B,), varied and some of them covered."""
        before = _vary(crops.pictures.pixels[rows], draw)
        pixels, under = before.clone(), torch.zeros(len(rows), *before.shape[2:])
        hide = torch.from_numpy(draw.random(len(rows)) < plan.cover)
        if hide.any():
            site, shares = crops.pictures.pixels, (plan.shapes, plan.passers_by)
            pixels[hide], under[hide] = cover_crops(before[hide], site, draw, *shares, self.passers_by)
        device = self.means.device
        return Batch(
            before=before.to(device),
            pixels=pixels.to(device),
            under=under.to(device),
            covered=hide.to(device),
            labels=self.labels[rows].to(device),
            own=self.centred[rows].to(device),
            means=self.means[crops.pictures.cameras[rows].to(device)],
        )


def _step(state: State, batch: Batch, memory: ClusterMemory, plan: Plan) -> float:
    loss, feature = _loss(state.net, state.first, batch, memory, plan)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.net.parameters(), 5.0)
    state.optimiser.step()
    memory.follow(feature, batch.labels)
    return float(loss.detach())


def _loss(net: AnyNetwork, first: AnyNetwork, batch: Batch, memory: ClusterMemory, plan: Plan) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and its centred features (B, D) without a gradient."""
    out = net.forward_train(to_input(batch.pixels, net.spec.preprocessing))
    raw = F.normalize(out.side(net.spec.neck).float(), dim=1)
    feature = F.normalize(raw - batch.means, dim=1)
    loss = memory.loss(feature, batch.labels)
    if plan.own:
        apart = (1 - (feature * batch.own).sum(1)) * batch.covered
        loss = loss + plan.own * apart.sum() / batch.covered.sum().clamp(min=1)
    if plan.agreement and net.spec.masks:
        person = memory.vectors[batch.labels]
        loss = loss + plan.agreement * losses.agreement(out.mask, feature.detach(), person)
    if plan.map_kept and out.visibility is not None:
        kept = _under_covers(_map_of(first, to_input(batch.before, net.spec.preprocessing)), batch.under)
        loss = loss + plan.map_kept * F.binary_cross_entropy_with_logits(out.visibility, kept)
    return loss, feature.detach()


@torch.no_grad()
def _map_of(net: AnyNetwork, images: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 2, h, w) in 0..1: what a network in evaluation mode says is seen and hidden."""
    if isinstance(net, ForeignNetwork):
        return net(images)[2]
    assert net.backbone.visibility is not None, "a model with a map"
    return torch.sigmoid(net.backbone.visibility(net.backbone.conv1(images)))


def _under_covers(shares: Tensor, under: Tensor) -> Tensor:
    """A map (B, 2, h, w) of seen and hidden after covering the pictures. under (B, H, W): share of each pixel."""
    covered = F.interpolate(under.unsqueeze(1), shares.shape[2:], mode="area")[:, 0]
    seen, hides = shares.unbind(1)
    return torch.stack([seen * (1 - covered), hides + torch.minimum(seen, 1 - hides) * covered], 1)


def _vary(pixels: Tensor, draw: np.random.Generator) -> Tensor:
    """Mirror half of the pictures (B, 3, H, W) uint8, and shift each by up to a twentieth of its height and width."""
    made = pixels.clone()
    flip = torch.from_numpy(draw.random(len(made)) < 0.5)
    made[flip] = made[flip].flip(3)
    height, width = made.shape[2:]
    for picture in made:
        down, right = draw.integers(-(height // 20), height // 20 + 1), draw.integers(-(width // 20), width // 20 + 1)
        picture[:] = torch.roll(picture, (int(down), int(right)), (1, 2))
    return made


def _start(net: AnyNetwork, plan: Plan) -> State:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mine, first = copy.deepcopy(net).to(device), copy.deepcopy(net).to(device).eval()
    for model, frozen in ((mine, FROZEN_STAGES), (first, len(STAGES))):
        stem = None if isinstance(model, ForeignNetwork) else model.backbone.conv1
        if isinstance(stem, ConvStem) and not isinstance(
            model, ForeignNetwork
        ):  # as in its training: a batch of few people is no measure of a batch norm
            stem.freeze(frozen, fixed_statistics=True)
            run_frozen_stages(model, device)
            stem.train()
    unused = {"prototypes"}
    parameters = [p for name, p in mine.named_parameters() if name not in unused and p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=plan.lr, weight_decay=plan.weight_decay)
    return State(mine, optimiser, first)


def _identity(net: AnyNetwork, crops: Crops, plan: Plan) -> str:
    """What must be the same for a state to be resumed."""
    kept = {name: value for name, value in asdict(plan).items() if name not in MAY_CHANGE}
    known = {"crops": crops.pictures.names, "answers": crops.answers}
    return json.dumps({"model": checkpoint.fingerprint(net), **known, "plan": kept})


def _save(state: State, path: Path, net: AnyNetwork, crops: Crops, plan: Plan) -> None:
    kept = {
        "identity": _identity(net, crops, plan),
        "round": state.round,
        "seconds": state.seconds,
        "history": json.dumps(state.history),
        "net": state.net.state_dict(),
        "optimiser": state.optimiser.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())


def _restore(state: State, path: Path, net: AnyNetwork, crops: Crops, plan: Plan) -> None:
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise CheckpointError(f"{path} is damaged ({str(error).splitlines()[0]}). Delete it to start over") from error
    if kept["identity"] != _identity(net, crops, plan):
        raise CheckpointError(
            f"{path} is of other crops, of another checkpoint or of other settings. "
            f"Give another -o, or delete it to start over"
        )
    state.round, state.seconds, state.history = kept["round"], kept["seconds"], json.loads(kept["history"])
    state.net.load_state_dict(kept["net"])
    state.optimiser.load_state_dict(kept["optimiser"])
