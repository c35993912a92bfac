"""`dpm-edge import`: another project's checkpoint, read without running code, as one of ours.

Every tensor of the file is used, or is known to serve training alone; anything else is named and refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dpm_edge.errors import CheckpointError, SpecError, nearest
from dpm_edge.families import FAMILIES, IMAGENET
from dpm_edge.images import find_images, preprocess, read_image
from dpm_edge.model.checkpoint import load_strictly
from dpm_edge.model.foreign_network import AnyNetwork, ForeignNetwork
from dpm_edge.model.imported import osnet, vision_transformers
from dpm_edge.model.imported.checkpoint_parts import Parts, count_blocks, sized
from dpm_edge.model.imported.resnet50 import BLOCKS, NON_LOCAL
from dpm_edge.model.network import DPM
from dpm_edge.model.weights_file import read_tensors
from dpm_edge.shipped import ASSETS
from dpm_edge.spec import Preprocessing, WeightsCard, foreign_spec

Size = tuple[int, int]
SEMANTIC_WEIGHT = 0.2
"""Of SOLIDER's published scores (its README)."""


@dataclass(frozen=True)
class Imported:
    """An imported network, and what of its file was left out."""

    net: AnyNetwork
    left_out: list[str]
    """Names of tensors that serve training alone."""


def read_checkpoint(family: str, path: Path, *, size: Size | None = None, licence: str | None = None) -> Imported:
    """Read another project's checkpoint.

    Args:
        family: a name of IMPORTS.
        path: .pt, .pth or .safetensors; never unpickled.
        size: (height, width) of the input, where it is not the project's own.
        licence: of the weights.

    Raises:
        SpecError: no such family is known.
        CheckpointError: the file is missing, damaged, holds code or NaN, or is not such a network (tensors are named).
        MissingLibrary: a library that defines the network is not installed.
    """
    if family not in IMPORTS:
        raise SpecError(f"expected a family, got {family!r}.{nearest(family, IMPORTS)}")
    tensors = read_tensors(path)
    if not tensors:
        raise CheckpointError(f"expected named tensors in {path}, got none. Give the file with the weights")
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"expected finite weights in {path}, got NaN or infinity in {broken[0]}")
    card = WeightsCard(licence=licence or "not stated", data="not stated", recipe=f"{path.name}, imported as {family}")
    parts = Parts(tensors, f"{path}, as {family},")
    net = IMPORTS[family](parts, card, size)
    return Imported(_with_mask_mean(net.eval()), parts.left)


def torchreid(parts: Parts, card: WeightsCard, size: Size | None) -> AnyNetwork:
    """torchreid's OSNet of any width, with or without instance norms (osnet_ibn_x1_0).

    Raises:
        CheckpointError: it does not fit.
    """
    parts.leave(("classifier.",))
    first = parts.tensors.get("conv1.conv.weight")
    names = {channels[0]: name for name, channels in osnet.CHANNELS.items()}
    if first is None or first.shape[0] not in names or not parts.has("fc.0.weight"):
        raise CheckpointError(
            f"expected an OSNet with conv1.conv and fc.0, got {parts.source} with "
            f"{', '.join(list(parts.tensors)[:3])}…. OSNets of {', '.join(osnet.CHANNELS)} and ibn_x1_0 can be imported"
        )
    width = names[first.shape[0]]
    instance = not parts.has("conv1.bn.running_mean")
    spec = foreign_spec(
        f"osnet_{'ibn_' if instance else ''}{width}",
        parts.tensors["fc.0.weight"].shape[0],
        _sized(FAMILIES["torchreid"], size),
        card,
    )
    net = ForeignNetwork(spec, {"kind": "osnet", "size": width, "instance_norm": instance})
    _load(net, parts.take_below(""), parts.source)
    return net


def fast_reid(parts: Parts, card: WeightsCard, size: Size | None) -> AnyNetwork:
    """fast-reid's ResNet-50 of the BoT, AGW and SBS recipes, plain or with IBN.

    Raises:
        CheckpointError: it does not fit.
    """
    if not parts.has("backbone.layer3.5.conv1.weight") or parts.has("backbone.layer3.6.conv1.weight"):
        raise CheckpointError(
            f"expected fast-reid's ResNet-50 with six blocks in backbone.layer3, got {parts.source} without. BoT, AGW "
            "and SBS with ResNet-50, plain or with IBN, can be imported"
        )
    parts.leave(("heads.weight", "heads.classifier."))
    ibn = parts.has("backbone.layer1.0.bn1.IN.weight")
    non_local = parts.has("backbone.NL_2.0.g.weight")
    learned_power = parts.has("heads.pool_layer.p")
    mean, std = _pixels(parts)
    state = {"power": parts.take("heads.pool_layer.p") if learned_power else torch.full((1,), 3.0)} if non_local else {}
    neck = parts.take_below("heads.bnneck.") or parts.take_below("heads.bottleneck.")
    reduces = neck.get("0.weight") is not None and neck["0.weight"].dim() == 4
    dimension = len(neck["0.weight"]) if reduces else 2048
    for name, value in neck.items():
        place, _, key = name.rpartition(".")
        state["reduce.weight" if reduces and place == "0" else f"neck.{key}"] = value
    for name, value in parts.take_below("backbone.").items():
        state[f"backbone.{_timm_name(name, non_local)}"] = value
    parts.nothing_else()
    recipe = ("sbs" if learned_power else "agw") if non_local else "bot"
    pre = replace(
        sized(FAMILIES["fast-reid"], size or ((384, 128) if recipe == "sbs" else (256, 128))), mean=mean, std=std
    )
    spec = foreign_spec(f"{recipe}_r50{'_ibn' if ibn else ''}", dimension, pre, card)
    net = ForeignNetwork(spec, {"kind": "resnet50", "ibn": ibn, "non_local": non_local, "power": non_local})
    _load(net, state, parts.source)
    return net


def solider(parts: Parts, card: WeightsCard, size: Size | None) -> AnyNetwork:
    """SOLIDER's Swin of any size, with the semantic weight that its published scores are of.

    Raises:
        CheckpointError: it does not fit.
    """
    projection = parts.tensors.get("base.patch_embed.projection.weight")
    if projection is None:
        raise CheckpointError(
            f"expected SOLIDER's Swin with base.patch_embed.projection, got {parts.source} without. Give the "
            "checkpoint of its person re-identification, not of its pretraining"
        )
    parts.leave(("classifier.", "bottleneck.", "base.norm0.", "base.norm1.", "base.norm2.", "base.semantic_embed_w.3."))
    parts.leave(("base.semantic_embed_b.3.",))
    parts.leave([name for name in parts.tensors if name.endswith("relative_position_index")])  # made again, not learned
    width = len(projection)
    depths = [count_blocks(parts.tensors, f"base.stages.{stage}.blocks.") for stage in range(4)]
    state = {
        "patch.weight": parts.take("base.patch_embed.projection.weight"),
        "patch.bias": parts.take("base.patch_embed.projection.bias"),
    }
    for theirs, ours in (("base.patch_embed.norm.", "patch_norm."), ("base.norm3.", "norm.")):
        state |= {f"{ours}{key}": value for key, value in parts.take_below(theirs).items()}
    for stage in range(3):
        below = parts.take_below(f"base.stages.{stage}.downsample.")
        scale, shift = _semantics(parts, stage)
        reduction = below.pop("reduction.weight", torch.zeros(0, 1)).float()
        if len(reduction) == len(scale):
            reduction = reduction * scale.unsqueeze(1)
        state |= {f"merges.{stage}.reduction.weight": reduction, f"merges.{stage}.reduction.bias": shift}
        state |= {f"merges.{stage}.{key}": value for key, value in below.items()}
    for name, value in parts.take_below("base.stages.").items():
        name = name.replace(".blocks.", ".").replace("attn.w_msa.", "attn.")
        name = name.replace("ffn.layers.0.0.", "mlp.fc1.").replace("ffn.layers.1.", "mlp.fc2.")
        state[f"stages.{name}"] = value
    parts.nothing_else()
    pre = sized(vision_transformers.HALF, size or (384, 128))
    spec = foreign_spec("solider", 8 * width, pre, card)
    net = ForeignNetwork(spec, {"kind": "swin", "width": width, "depths": depths})
    _load(net, state, parts.source)
    return net


def _semantics(parts: Parts, stage: int) -> tuple[Tensor, Tensor]:
    """What SOLIDER multiplies and adds to each channel behind a stage, at SEMANTIC_WEIGHT."""
    weight = torch.tensor([SEMANTIC_WEIGHT, 1 - SEMANTIC_WEIGHT])
    factor, addition = (
        parts.take(f"base.semantic_embed_{kind}.{stage}.weight").float() @ weight
        + parts.take(f"base.semantic_embed_{kind}.{stage}.bias").float()
        for kind in "wb"
    )
    return torch.nn.functional.softplus(factor), addition


IMPORTS: dict[str, Callable[[Parts, WeightsCard, Size | None], AnyNetwork]] = {
    "torchreid": torchreid,
    "fast-reid": fast_reid,
    "clip-reid": vision_transformers.clip_reid,
    "dpm": vision_transformers.dpm,
    "transreid": vision_transformers.transreid,
    "solider": solider,
}
"""Family → what makes a network of its checkpoints."""


def _sized(pre: Preprocessing, size: Size | None) -> Preprocessing:
    return pre if size is None else sized(pre, size)


def _load(net: ForeignNetwork, state: dict[str, Tensor], source: str) -> None:
    """Load strictly; counters of batches, which files of old versions of torch lack, may be missing."""
    for name, value in net.body.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
    load_strictly(net.body, state, source=source)


def _pixels(parts: Parts) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of values in 0..1: fast-reid keeps them of values in 0..255, in older files beside the weights."""
    if not (parts.has("pixel_mean") and parts.has("pixel_std")):
        return IMAGENET
    mean, std = (parts.take(f"pixel_{what}").flatten().tolist() for what in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise CheckpointError(f"expected pixel_mean and pixel_std of three channels got {mean}, {std}")
    return (mean[0] / 255, mean[1] / 255, mean[2] / 255), (std[0] / 255, std[1] / 255, std[2] / 255)


def _timm_name(name: str, non_local: bool) -> str:
    """fast-reid's name of a backbone's parameter → ours; a non-local block lies inside the block it stands behind."""
    part, _, rest = name.partition(".")
    number, _, key = rest.partition(".")
    if part.startswith("NL_"):
        stage = int(part[3:])
        return f"layer{stage}.{BLOCKS[stage] - NON_LOCAL.get(stage, 0) + int(number)}.non_local.{key}"
    stage = int(part[5:]) if part.startswith("layer") else 0
    if non_local and stage in NON_LOCAL and int(number) >= BLOCKS[stage] - NON_LOCAL[stage]:
        return f"{part}.{number}.block.{key}"
    return name


def _with_mask_mean(net: AnyNetwork) -> AnyNetwork:
    """The network with the mean of its masks over the pictures that ship, where it has masks and they are there."""
    folder = ASSETS / "samples"
    if isinstance(net, ForeignNetwork) or not folder.is_dir():
        return net
    assert isinstance(net, DPM)
    crops = [read_image(path) for path in find_images(folder)[:8]]
    with torch.inference_mode():
        mask = net(torch.from_numpy(preprocess(crops, net.spec.preprocessing)))[1]
    net.spec = replace(net.spec, mask_mean=float(mask.mean()))
    return net
