"""CLIP-ReID's, DPM's and TransReID's ViTs into our network, strictly, with their position tables as they are.

An engine is told no camera: where a network was trained with an embedding for each, their mean takes its place. It is
added to the cls token in CLIP-ReID, to every token in the other two.

d width · N patch tokens · J joint width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpm_edge.errors import CheckpointError
from dpm_edge.model.checkpoint import load_strictly
from dpm_edge.model.foreign_network import AnyNetwork, ForeignNetwork
from dpm_edge.model.imported.checkpoint_parts import Parts, count_blocks, grid_of, sized
from dpm_edge.model.imported.transreid import PARTS
from dpm_edge.model.network import DPM
from dpm_edge.spec import ModelSpec, Preprocessing, WeightsCard, foreign_spec

HALF = Preprocessing(height=256, width=128, color="rgb", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SIZES = [(256, 128), (384, 128)]
CAMERA_SCALE = {"clip-reid": 1.0, "dpm": 3.0, "transreid": 3.0}
"""Factor of the camera embedding in each project's published settings (MODEL.SIE_COE)."""
_HEAD = 64
"""Dimensions of an attention head in every ViT of these projects."""
_RENAMED = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
"""timm's names of a block's parameters → CLIP's, which are ours."""


def clip_reid(parts: Parts, card: WeightsCard, size: tuple[int, int] | None) -> AnyNetwork:
    """CLIP-ReID's ViT-B/16 as dpm-b: the cls feature and its projection, before the neck, as its own test takes them.

    Raises:
        CheckpointError: it does not fit.
    """
    parts.leave(("text_encoder.", "prompt_learner.", "classifier_proj.", "bottleneck_proj."))
    if not parts.has("image_encoder.positional_embedding"):
        raise CheckpointError(
            f"expected CLIP-ReID's ViT-B/16 with image_encoder.positional_embedding, got {parts.source} without. "
            "Its ResNet-50 cannot be imported"
        )
    visual = parts.take_below("image_encoder.")
    table = visual["positional_embedding"]
    height, width, stride = grid_of(len(table) - 1, [size] if size else SIZES, source=parts.source)
    spec = ModelSpec(
        name="clip-reid",
        width=table.shape[1],
        heads=_heads(table.shape[1]),
        layers=count_blocks(visual, "transformer.resblocks."),
        stride=stride,
        quick_gelu=True,
        joint_dim=_shape(visual, "proj")[-1],
        feature="concat",
        neck="before",
        preprocessing=sized(HALF, (height, width)),
        weights=card,
        mask_blocks=_mask_blocks(count_blocks(visual, "transformer.resblocks.")),
    )
    if parts.has("cv_embed"):
        mean = CAMERA_SCALE["clip-reid"] * parts.take("cv_embed").float().mean(0)
        visual["class_embedding"] = visual["class_embedding"].float() + mean
    return _ours(spec, visual, {}, parts)


def dpm(parts: Parts, card: WeightsCard, size: tuple[int, int] | None) -> AnyNetwork:
    """DPM's ViT-B/16 and mask generator (ACM MM 2022, its public code) as a dpm-b with an ImageNet encoder.

    Raises:
        CheckpointError: it does not fit.
    """
    if not parts.has("base.attfc.weight"):
        raise CheckpointError(
            f"expected DPM's network with base.attfc, its mask generator, got {parts.source} without. Import a network "
            "of TransReID with the family transreid"
        )
    visual, spec = _imagenet_vit(parts, card, size, "dpm")
    masks = {f"linear.{key}": parts.take(f"base.attfc.{key}") for key in ("weight", "bias")}
    for number, place in enumerate((0, 2, 4), start=1):  # max-pools stand between the blocks
        here = f"base.ConvLayer.{place}"
        bias = parts.take(f"{here}.0.bias").float()
        masks[f"conv{number}.weight"] = parts.take(f"{here}.0.weight")
        norm = parts.take_below(f"{here}.1.")
        norm["running_mean"] = _of(norm, "running_mean", f"{here}.1.").float() - bias
        masks |= {f"bn{number}.{key}": value for key, value in norm.items()}
    return _ours(spec, visual, masks, parts)


def transreid(parts: Parts, card: WeightsCard, size: tuple[int, int] | None) -> AnyNetwork:
    """TransReID's ViT or DeiT, small or base. Without the jigsaw patch module it is a dpm-b with an ImageNet encoder.

    Raises:
        CheckpointError: it does not fit.
    """
    if not any(name.startswith("b1.") for name in parts.tensors):
        visual, spec = _imagenet_vit(parts, card, size, "transreid")
        return _ours(spec, visual, {}, parts)
    depth = count_blocks(parts.tensors, "base.blocks.") - 1
    # the feature never passes the last block and its norm: b1 and b2 are their trained copies
    parts.leave((f"base.blocks.{depth}.", "base.norm.", "bottleneck", "classifier"))
    visual, spec = _imagenet_vit(parts, card, size, "transreid", patch_bias=True)
    pre, width = spec.preprocessing, spec.width
    body = {
        name: visual[name] for name in ("conv1.weight", "conv1.bias", "class_embedding", "positional_embedding")
    } | {
        name.replace("transformer.resblocks.", "blocks."): value
        for name, value in visual.items()
        if name.startswith("transformer.")
    }
    for source, name in (("b1", "whole"), ("b2", "part")):
        body |= {f"{name}.{_ours_of(key)}": value for key, value in parts.take_below(f"{source}.0.").items()}
        body |= {f"{name}_norm.{key}": value for key, value in parts.take_below(f"{source}.1.").items()}
    parts.nothing_else()
    made = ForeignNetwork(
        foreign_spec("transreid", (1 + PARTS) * width, pre, card),
        {"kind": "transreid", "width": width, "heads": spec.heads, "depth": depth, "stride": spec.stride},
    )
    load_strictly(made.body, body, source=parts.source)
    return made


def _imagenet_vit(
    parts: Parts, card: WeightsCard, size: tuple[int, int] | None, family: str, *, patch_bias: bool = False
) -> tuple[dict[str, Tensor], ModelSpec]:
    """A TransReID-like ViT's tensors under our names, and its spec.

    The patch embedding's bias is added to the position table, unless `patch_bias` keeps it.
    """
    parts.leave(("base.fc.", "base.head."))
    table, cls = parts.take("base.pos_embed").float()[0], parts.take("base.cls_token").float().flatten()
    height, width, stride = grid_of(len(table) - 1, [size] if size else SIZES, source=parts.source)
    if parts.has("base.sie_embed"):
        table = table + CAMERA_SCALE[family] * parts.take("base.sie_embed").float().mean(0)
    visual = {"class_embedding": cls, "conv1.weight": parts.take("base.patch_embed.proj.weight")}
    bias = parts.take("base.patch_embed.proj.bias").float()
    if patch_bias:
        visual["conv1.bias"] = bias
    else:
        table = torch.cat([table[:1], table[1:] + bias])
    visual["positional_embedding"] = table
    layers = count_blocks(parts.tensors, "base.blocks.")
    visual |= {
        f"transformer.resblocks.{_ours_of(name)}": value for name, value in parts.take_below("base.blocks.").items()
    }
    visual |= {f"ln_post.{key}": value for key, value in parts.take_below("base.norm.").items()}
    spec = ModelSpec(
        name=family,
        width=len(cls),
        heads=_heads(len(cls)),
        layers=layers,
        stride=stride,
        joint_dim=0,
        neck="before",
        encoder="imagenet",
        preprocessing=sized(HALF, (height, width)),
        weights=card,
        mask_blocks=_mask_blocks(layers),
    )
    return visual, spec


def _ours(spec: ModelSpec, visual: dict[str, Tensor], masks: dict[str, Tensor], parts: Parts) -> DPM:
    """The network of a spec with these weights, its neck and its classifier; no masks: a generator not yet taught.

    Raises:
        CheckpointError: it does not fit.
    """
    prototypes = parts.take("classifier.weight") if parts.has("classifier.weight") else None
    state = {f"backbone.{name}": value for name, value in visual.items()}
    state |= {f"neck.{name}": value for name, value in parts.take_below("bottleneck.").items()}
    if prototypes is not None:
        state["prototypes"] = prototypes
    parts.nothing_else()
    net = DPM(spec, classes=0 if prototypes is None else len(prototypes))
    state |= {f"mask_generator.{name}": value for name, value in (masks or net.mask_generator.state_dict()).items()}
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):  # files of old versions of torch lack them
            state.setdefault(name, value)
    load_strictly(net, state, source=parts.source)
    return net.eval()


def _ours_of(name: str) -> str:
    """A block's parameter in timm's name → ours; qkv.weight becomes in_proj_weight."""
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return name


def _heads(width: int) -> int:
    return max(1, width // _HEAD)


def _mask_blocks(layers: int) -> tuple[int, ...]:
    """The paper's blocks where the ViT has its twelve; four that are spread alike otherwise."""
    at = (2, 4, 10, 12)
    return at if layers == at[-1] else tuple(max(1, round(b * layers / at[-1])) for b in at)


def _of(tensors: dict[str, Tensor], name: str, prefix: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"the checkpoint does not fit the network: {prefix}{name} is missing")
    return tensors[name]


def _shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...]:
    return tuple(_of(tensors, name, "image_encoder.").shape)
