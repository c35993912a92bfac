"""Teach an imported network, everything of it held still, a map of what is seen and masks: `dpm-edge train mask`.

The map's teacher is a model that ships: what its map says of an uncovered picture, less what is pasted over it, is what
the new one has to say. Its heads read the network's last feature map; where there is none, a small network beside it
looks at the picture. The gates are taught as those of our networks are (dpm_edge.train.mask), and see the map too.

n pictures · B batch · c channels · h×w map · D feature dimensions
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpm_edge.errors import CheckpointError, DataError
from dpm_edge.market import LabelledFolder
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import ForeignNetwork
from dpm_edge.model.foreign_sight import PICTURE_CHANNELS, POOLS, ForeignSight
from dpm_edge.model.imported.onnx_graph import OnnxGraph
from dpm_edge.model.imported.onnx_map import find_map
from dpm_edge.model.stem import STAGES, ConvStem
from dpm_edge.model.visibility import share_in_sight
from dpm_edge.progress import say
from dpm_edge.train import covering, losses
from dpm_edge.train.config import CoveringConfig
from dpm_edge.train.data import Pictures, decode, to_input
from dpm_edge.train.evaluate import embed, maps_of, rank_correlation
from dpm_edge.train.frozen_body import run_frozen_body
from dpm_edge.train.mask import WHOLE, Lesson, covered_exactly, fit
from dpm_edge.train.sight import run_frozen_stages, visibility_loss
from dpm_edge.train.status import counted

TEACHER = "dpm-n"
"""The model that ships whose map is the teacher."""
MOST_BYTES = 2 << 30
"""Of feature maps that are kept in memory."""
BATCH = 64
SCALE = 20.0
"""Factor on cosines in the gates' lesson."""


def plain(net: ForeignNetwork) -> ForeignNetwork:
    """A copy of a network without its sight."""
    network = {key: value for key, value in net.network.items() if key not in ("sight", "map", "map_grid")}
    spec = replace(net.spec, masks=False, visibility="mask", foreign_grid=None, mask_mean=0.5)
    made = ForeignNetwork(spec, network)
    made.body.load_state_dict(net.body.state_dict())
    return made.eval()


def with_sight(net: ForeignNetwork, *, gates: bool, pool: str) -> ForeignNetwork:
    """A copy of a network with an untaught sight.

    Raises:
        CheckpointError: the network has no feature map of convolutions, so that `pool` cannot be.
    """
    bare = plain(net)
    network = dict(bare.network)
    channels, grid, picture = _place_to_look(bare, network)
    if pool != POOLS[0] and (picture or "map_grid" in network):
        raise CheckpointError(
            f"expected a network with a feature map of convolutions for --pool {pool}, got {net.spec.name!r}, which "
            "has none. Leave --pool out"
        )
    network["sight"] = {"channels": channels, "rows": grid[0], "gates": gates, "pool": pool, "picture": picture}
    made = ForeignNetwork(replace(bare.spec, masks=True, visibility="map", foreign_grid=grid), network)
    made.body.load_state_dict(net.body.state_dict())
    return made.eval()


@torch.inference_mode()
def _place_to_look(net: ForeignNetwork, network: dict[str, Any]) -> tuple[int, tuple[int, int], bool]:
    """Channels and grid of what the sight reads, and whether it is the picture; an ONNX's map is noted in `network`."""
    pre = net.spec.preprocessing
    if isinstance(net.body, OnnxGraph):
        found = find_map(net.body, pre)
        if found is None:
            return 0, tuple(-(-side // 2 ** len(PICTURE_CHANNELS)) for side in (pre.height, pre.width)), True
        network["map"] = found.name
        if found.tokens:
            network["map_grid"] = list(found.grid)
        return found.channels, found.grid, False
    grid = net.body.to_map(torch.zeros(1, 3, pre.height, pre.width))[0]  # type: ignore[operator]
    return grid.shape[1], tuple(grid.shape[2:]), False


def teacher_maps(folder: LabelledFolder, kept: list[str], *, quiet: bool = False) -> Tensor:
    """What TEACHER's map says of the pictures of a folder, (n, 2, h, w) in 0..1.

    Raises:
        DataError: other pictures can be read than `kept`, the file names of those that the network reads.
    """
    teacher = checkpoint.load(Path(TEACHER))
    pictures = decode(folder, teacher.spec.preprocessing, quiet=quiet)
    if pictures.names != kept:
        raise DataError("expected the teacher of the map to read the same pictures as the network, got others")
    stem = teacher.backbone.conv1
    assert isinstance(stem, ConvStem) and teacher.backbone.visibility is not None, "a model with a map"
    stem.freeze(len(STAGES), fixed_statistics=True)
    run_frozen_stages(teacher, torch.device("cpu"))
    parts, found = pictures.pixels.split(BATCH), []
    with torch.no_grad():
        for part in counted(parts, what=f"{TEACHER}'s map", total=len(parts), quiet=quiet):
            grid = stem(to_input(part, teacher.spec.preprocessing))
            found.append(torch.sigmoid(teacher.backbone.visibility(grid)))
    return torch.cat(found)


def shares_under(maps: Tensor, cover: Tensor, grid: tuple[int, int]) -> Tensor:
    """A teacher's maps (n, 2, h, w) of uncovered pictures → shares of seen and hidden (n, 2, *grid) of covered ones.

    cover (n, H, W): share of each pixel that something was pasted over. What was seen there is hidden then.
    """
    made = []
    for part, over in zip(maps.split(BATCH), cover.split(BATCH)):
        seen, hidden = F.interpolate(part, over.shape[1:], mode="bilinear", align_corners=False).unbind(1)
        under = seen * over.float()
        made.append(F.adaptive_avg_pool2d(torch.stack([seen - under, hidden + under], 1), grid))
    return torch.cat(made)


def teach(
    net: ForeignNetwork, train: Pictures, maps: Tensor, lesson: Lesson, *, pool: str = "all", quiet: bool = False
) -> ForeignNetwork:
    """A copy of `net` (on the CPU) with a sight taught from the start: first its map, then its gates.

    maps: `teacher_maps` of the pictures.

    Raises:
        DataError: the pictures are of fewer than two people.
        CheckpointError: as `with_sight`.
    """
    labels = train.labels()
    several = torch.bincount(labels) > 1
    if int(several.sum()) < 2:
        raise DataError(
            f"expected two people or more with two pictures or more each to teach masks with, got {int(several.sum())}"
        )
    draw = np.random.default_rng(lesson.seed)
    torch.manual_seed(lesson.seed)
    taught = with_sight(net, gates=True, pool=pool)
    taught.body.requires_grad_(False)
    run_frozen_body(taught)
    chosen = torch.from_numpy(draw.permutation(len(train))[: _most_pictures(taught, lesson, quiet)])
    made, shares = _covered(train.pixels, maps, chosen, taught.spec.grid, draw)
    _teach_map(taught, made, shares, lesson, quiet)
    covered, read_covered = _read(taught, made, "covered pictures", quiet)
    whole, read_whole = _read(taught, train.pixels, "whole pictures", quiet)
    known = several[labels[chosen]]  # a person's only picture has no other to be like
    rows = chosen[known]
    read = torch.cat([read_covered[known], read_whole[rows]])
    features = torch.cat([covered[known], whole[rows]])
    _teach_gates(taught, read, features, whole, labels, torch.cat([rows, rows]), lesson, quiet)
    sample = train.pixels[:: max(1, len(train) // 1000)]
    taught.spec = replace(taught.spec, mask_mean=float(embed(taught, sample)[1].mean()))
    taught.run_body = None
    return taught.eval()


def _covered(
    pixels: Tensor, maps: Tensor, chosen: Tensor, grid: tuple[int, int], draw: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Chosen (n,) rows of pixels (N, 3, H, W) uint8, covered, and what is then seen and hidden by their maps, (n, 2,
    *grid). Half of them are under boxes, half under shapes of dpm_edge.train.covering."""
    made, shares = pixels[chosen], torch.zeros(len(chosen), 2, *grid)
    torch_draw = torch.Generator().manual_seed(int(draw.integers(2**31)))
    config = CoveringConfig(probability=1 - WHOLE)
    for number, rows in enumerate(torch.arange(len(chosen)).split(BATCH)):
        if number % 2:
            made[rows], cover = covered_exactly(made[rows], pixels, draw)
        else:
            made[rows], cover = covering.cover_pictures(made[rows], config, torch_draw)
        shares[rows] = shares_under(maps[chosen[rows]], cover, grid)
    return made, shares


def without_gates(net: ForeignNetwork) -> ForeignNetwork:
    """A copy of a network with a sight that keeps its map and has masks of ones."""
    network = {**net.network, "sight": {**net.network["sight"], "gates": False}}
    made = ForeignNetwork(replace(net.spec, mask_mean=1.0), network)
    made.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("sight.gates.")})
    return made.eval()


def sight_of(net: ForeignNetwork) -> ForeignSight:
    """The sight of a network that has one."""
    assert net.sight is not None, "a network with a sight"
    return net.sight


def _most_pictures(net: ForeignNetwork, lesson: Lesson, quiet: bool) -> int:
    """Pictures of the lesson whose feature maps fit in MOST_BYTES."""
    sight, (rows, columns) = sight_of(net), net.spec.grid
    if sight.picture:
        return lesson.pictures
    fitting = MOST_BYTES // (2 * sight.channels * rows * columns)
    if fitting < lesson.pictures and not quiet:
        say(f"{fitting} of {lesson.pictures} pictures: the feature maps of more would not fit in memory")
    return min(lesson.pictures, fitting)


@torch.inference_mode()
def _read(net: ForeignNetwork, pixels: Tensor, what: str, quiet: bool) -> tuple[Tensor, Tensor]:
    """Features (n, D), L2-normalised, of pictures (n, 3, H, W) uint8, and what the gates read (n, K); float32."""
    sight, parts, features, read = sight_of(net), pixels.split(BATCH), [], []
    for part in counted(parts, what=what, total=len(parts), quiet=quiet):
        raw, logits, grid = net.look(to_input(part, net.spec.preprocessing))
        assert logits is not None, "a network with a sight"
        features.append(F.normalize(raw, dim=1))
        read.append(sight.gate_inputs(grid, logits, raw))
    return torch.cat(features), torch.cat(read)


def _teach_map(net: ForeignNetwork, pixels: Tensor, shares: Tensor, lesson: Lesson, quiet: bool) -> None:
    """Teach the map by exact shares (n, 2, h, w) of covered pictures (n, 3, H, W) uint8."""
    sight, pre = sight_of(net), net.spec.preprocessing
    grids = None
    if not sight.picture:
        with torch.inference_mode():
            parts = counted(pixels.split(BATCH), what="feature maps", total=-(-len(pixels) // BATCH), quiet=quiet)
            grids = torch.cat([net.from_body(to_input(part, pre))[0].half() for part in parts])

    def loss(rows: Tensor) -> Tensor:
        read = to_input(pixels[rows], pre) if grids is None else grids[rows].float()
        return visibility_loss(sight.visibility(sight.look(read)), shares[rows])

    fit(nn.ModuleList([sight.look, sight.visibility]), len(pixels), loss, lesson, "map", quiet=quiet)
    for learned in (sight.look, sight.visibility):
        learned.requires_grad_(False)


def _teach_gates(
    net: ForeignNetwork, read: Tensor, features: Tensor, whole: Tensor, labels: Tensor, rows: Tensor, lesson: Lesson,
    quiet: bool,
) -> None:  # fmt: skip
    """Teach the gates to tell, by the masked metric, whose picture it is.

    read (n, K), features (n, D): of pictures, whose places among all training pictures are rows (n,); whole (N, D) and
    labels (N,): of all of those. A picture's person is the mean of the person's others.
    """
    gates = sight_of(net).gates
    assert gates is not None, "a sight with gates"
    total = torch.zeros(int(labels.max()) + 1, whole.shape[1]).index_add_(0, labels, whole)
    person = F.normalize(total, dim=1)

    def loss(batch: Tensor) -> Tensor:
        here = rows[batch]
        mask = gates(read[batch])
        cosines = losses.masked_cosines(features[batch], mask, person)
        own = F.normalize(total[labels[here]] - whole[here], dim=1)
        own_cosines = losses.masked_cosines(features[batch], mask, own).diagonal()
        cosines = cosines.scatter(1, labels[here].unsqueeze(1), own_cosines.unsqueeze(1))
        return F.cross_entropy(SCALE * cosines, labels[here])

    gates.train()
    fit(gates, len(read), loss, lesson, "masks", quiet=quiet)
    gates.eval()
    gates.centre(read)


def judge_map(
    net: ForeignNetwork, query: Pictures, sets: dict[tuple[str, float], Pictures], maps: Tensor
) -> dict[str, float]:
    """How well visibility follows the share in sight, over whole and covered queries.

    The truth is what TEACHER's maps (n, 2, h, w) of the whole queries show of the person outside of the cover.
    """
    truth, shown = [], []
    for pictures in (query, *sets.values()):
        cover = (pictures.pixels != query.pixels).any(1)
        shares = shares_under(maps, cover, net.spec.grid)
        truth.append(share_in_sight(shares[:, 0], shares[:, 1]))
        found = maps_of(net, pictures.pixels, BATCH)
        assert found is not None, "a network with a map"
        shown.append(share_in_sight(found[:, 0], found[:, 1]))
    true, said = torch.cat(truth).numpy(), torch.cat(shown).numpy()
    return {
        "rank correlation": round(rank_correlation(said, true), 3),
        "mean error": round(float(np.abs(said - true).mean()), 3),
        "mean of whole": round(float(shown[0].mean()), 3),
        "mean of covered": round(float(torch.cat(shown[1:]).mean()), 3),
    }
