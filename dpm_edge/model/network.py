"""The DPM++ network: backbone, mask generator, BN neck and classifier prototypes.

Shapes: B images · H×W pixels · h×w grid · N = h·w · d width · A heads · J joint width · C training identities ·
D feature width (d, or d + J where the spec's feature is "concat").
Sources: DPM, ACM MM 2022 (arXiv 2207.09046) · CLIP-ReID (arXiv 2211.13977) · DPM++ (arXiv 2605.06637).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpm_edge.model.backbone import Backbone
from dpm_edge.model.mask_generator import MASK_GENERATORS
from dpm_edge.spec import NECKS, ModelSpec


@dataclass
class DPMOutput:
    """Everything that the losses read; dtypes are those of the forward, except where it says float32."""

    f: Tensor
    """(B, d): the cls token after the last LayerNorm, before the neck; what retrieval uses, not normalised."""
    neck: Tensor
    """(B, d) float32: `f` after the BN neck; what the classifier reads."""
    mask: Tensor
    """(B, d) float32: one gate in (0, 1) per feature dimension."""
    joint: Tensor | None
    """(B, J): `f` in CLIP's joint space, or None where the spec's joint_dim is 0."""
    cls_attention: Tensor
    """(B, A, N): the cls query's logits over the patches in the last block, before softmax."""
    tokens: list[Tensor]
    """Outputs of the blocks in the spec's mask_blocks, each (B, 1+N, d), cls first."""
    logits: Tensor | None
    """(B, C) float32: `neck` · Wᵀ, or None where the network was built without classes."""
    visibility: Tensor | None = None
    """(B, 2, h, w) float32: logits of `seen` and `hidden`, or None where the spec's visibility is not "map"."""

    def side(self, neck: str) -> Tensor:
        """The feature (B, d) on a side of the neck, one of `NECKS`; not normalised."""
        return self.neck if neck == "after" else self.f


class DPM(nn.Module):
    """The network that `spec` describes.

    `classes` > 0 adds classifier prototypes W (C, d) for training; an engine never contains them.
    `drop_path_rate`: stochastic depth in the backbone while training.
    """

    def __init__(self, spec: ModelSpec, classes: int = 0, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(
            width=spec.width,
            layers=spec.layers,
            heads=spec.heads,
            patch=spec.patch,
            stride=spec.stride,
            grid=spec.grid,
            mlp_ratio=spec.mlp_ratio,
            joint_dim=spec.joint_dim,
            quick_gelu=spec.quick_gelu,
            cameras=spec.cameras,
            camera_scale=spec.camera_scale,
            drop_path_rate=drop_path_rate,
            stem=spec.stem,
            instance_norm=spec.instance_norm,
            sees=spec.visibility == "map",
            stripes=spec.stripes,
            encoder=spec.encoder,
        )
        self.mask_generator = MASK_GENERATORS[spec.hmg](spec.width, spec.grid, len(spec.mask_blocks))
        self.neck = nn.BatchNorm1d(spec.width)
        self.neck.bias.requires_grad_(False)
        self.prototypes = nn.Parameter(0.001 * torch.randn(classes, spec.width)) if classes else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What an engine computes: preprocessed images (B, 3, H, W) → feature (B, D) and mask (B, D), float32.

        Where the spec's visibility is "map", also visibility (B, 2, h, w) float32 in 0..1: the shares of each patch
        that show the person, and that would if nothing stood in front (dpm_edge.model.visibility).

        The feature is L2-normalised. With the spec's feature "concat" the joint vector is appended to the cls
        feature before normalising (CLIP-ReID), and its dimensions get the mean gate of the image, so that a
        constant mask still leaves the plain metric (this project's choice).
        """
        sides, mask, seen = self._outputs(images, (self.spec.neck,))
        return (sides[self.spec.neck], mask) if seen is None else (sides[self.spec.neck], mask, seen)

    def features(self, images: Tensor, necks: Sequence[str] = NECKS) -> tuple[dict[str, Tensor], Tensor]:
        """Compute `forward`'s feature on each of the named sides of the BN neck, and the mask, in one pass.

        images (B, 3, H, W) → {side: (B, D)} and (B, D), float32.
        """
        return self._outputs(images, necks)[:2]

    def _outputs(self, images: Tensor, necks: Sequence[str]) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Features by side of the neck, mask, and the map of what is seen, None without one."""
        out = self.backbone(images, blocks=self.spec.mask_blocks)
        mask = self.mask_generator(out.tokens)
        sides = {neck: self.neck(out.cls).float() if neck == "after" else out.cls.float() for neck in necks}
        if self.spec.feature == "concat":
            joint = out.joint.float()
            sides = {neck: torch.cat([feature, joint], dim=1) for neck, feature in sides.items()}
            mask = torch.cat([mask, mask.mean(dim=1, keepdim=True).expand(-1, joint.shape[1])], dim=1)
        seen = None if out.visibility is None else torch.sigmoid(out.visibility.float())
        return {neck: F.normalize(feature, dim=1) for neck, feature in sides.items()}, mask, seen

    def forward_train(
        self, images: Tensor, cameras: Tensor | None = None, patch_scale: Tensor | None = None
    ) -> DPMOutput:
        """What training reads. images (B, 3, H, W); cameras (B,) int64 if the spec has cameras; patch_scale (B, N)
        factors on the patch embeddings.

        Raises:
            SpecError: cameras are given to a model without a camera embedding.
        """
        out = self.backbone(
            images, blocks=self.spec.mask_blocks, cameras=cameras, patch_scale=patch_scale, with_cls_attention=True
        )
        with torch.autocast(images.device.type, enabled=False):
            neck = self.neck(out.cls.float())
            logits = F.linear(neck, self.prototypes.float()) if self.prototypes is not None else None
        mask = self.mask_generator(out.tokens)
        visibility = None if out.visibility is None else out.visibility.float()
        return DPMOutput(out.cls, neck, mask, out.joint, out.cls_attention, out.tokens, logits, visibility)

    def mask_generator_parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters of the mask generator: one side of the alternating optimisation."""
        return (p for p in self.mask_generator.parameters() if p.requires_grad)

    def other_parameters(self) -> Iterator[nn.Parameter]:
        """All trainable parameters outside the mask generator: the other side."""
        return (p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("mask_generator."))
