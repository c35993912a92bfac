"""CLIP's image encoder on an h×w grid of overlapping or touching patches.

The names of the parameters are those of open_clip's `VisionTransformer`, so its weights load as they are. It is
written here because person re-identification needs what open_clip does not give: a stride smaller than the patch,
the tokens of several blocks, the cls query's attention logits in the last block, and a camera embedding.

Shapes: B images · H×W pixels · h×w grid · N = h·w patch tokens · d width · A heads · L blocks · J joint width.
Sources: ViT arXiv 2010.11929 · CLIP arXiv 2103.00020 · overlapping patches and camera embedding: TransReID
arXiv 2102.04378, CLIP-ReID arXiv 2211.13977.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpm_edge.errors import SpecError
from dpm_edge.model.stem import ConvStem
from dpm_edge.model.visibility import SEEN, StripePooling, VisibilityHead

EPS = {"clip": 1e-5, "imagenet": 1e-6}
"""Encoder → eps of its LayerNorms."""
_LEAST_SEEN = 1e-3
"""Patches: a floor under the divisor of the mean over what is seen."""


class BackboneOutput(NamedTuple):
    """What the backbone hands on; all tensors keep the dtype that the forward ran in."""

    cls: Tensor
    """(B, d): the cls token after the last LayerNorm."""
    joint: Tensor | None
    """(B, J): `cls` projected into CLIP's joint space, or None where the model has no projection."""
    tokens: list[Tensor]
    """Outputs of the blocks that were asked for, each (B, 1 + N, d), cls first, no LayerNorm applied."""
    cls_attention: Tensor | None
    """(B, A, N): the cls query's logits over the patches in the last block, before softmax; None unless asked for."""
    visibility: Tensor | None
    """(B, 2, h, w): logits of `seen` and `hidden` (dpm_edge.model.visibility); None without a visibility head."""


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x): the activation that OpenAI's CLIP weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, with_cls_logits: bool = False) -> tuple[Tensor, Tensor | None]:
        """x (B, 1+N, d) → the attended tokens (B, 1+N, d) and, if asked for, the cls logits (B, A, N)."""
        batch, length, width = x.shape
        scale = (width // self.heads) ** -0.5
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in qkv)
        if torch.compiler.is_exporting():  # ONNX would get fifteen shape operators for the fused call
            attended = torch.softmax(q * scale @ k.transpose(-2, -1), dim=-1) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        logits = (q[:, :, :1] * scale @ k[:, :, 1:].transpose(-2, -1)).squeeze(2) if with_cls_logits else None
        return self.out_proj(attended.transpose(1, 2).reshape(batch, length, width)), logits


class MLP(nn.Module):
    """d → hidden → d."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class ResidualAttentionBlock(nn.Module):
    """One pre-LayerNorm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, quick_gelu: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, quick_gelu)

    def forward(
        self, x: Tensor, with_cls_logits: bool = False, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, 1+N, d) → (B, 1+N, d), and the cls logits (B, A, N) if asked for.

        kept (2, B, 1, 1): factors on the two residual branches of each image.
        """
        attended, logits = self.attn(self.ln_1(x), with_cls_logits)
        x = x + (attended if kept is None else attended * kept[0])
        made = self.mlp(self.ln_2(x))
        return x + (made if kept is None else made * kept[1]), logits


class Transformer(nn.Module):
    """The stack of blocks; its own module so that parameter names match open_clip's."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int, quick_gelu: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, hidden, quick_gelu, eps) for _ in range(layers)
        )


class Backbone(nn.Module):
    """The image encoder.

    `grid` is (h, w); `joint_dim` 0 leaves out the projection into CLIP's joint space; `cameras` > 0 adds a learned
    embedding per camera, times `camera_scale`, to every token (then `forward` may be given camera indices).
    `drop_path_rate`: stochastic depth (arXiv 1603.09382), rising linearly from 0 in the first block to this value in
    the last, in training mode only. `stem` "lite0" or "lite0-deep" takes the patch tokens from a convolutional stem
    (dpm_edge.model.stem). `sees` adds a visibility head: each patch embedding is then scaled by the share of it that
    shows the person, a learned vector takes the rest, and the cls token starts at their mean, weighted so. `stripes`
    adds to the feature what is pooled over horizontal stripes (dpm_edge.model.visibility). `encoder` "imagenet" has no
    LayerNorm before the first block.
    """

    drop_rates: Tensor

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        patch: int,
        stride: int,
        grid: tuple[int, int],
        mlp_ratio: float = 4.0,
        joint_dim: int = 512,
        quick_gelu: bool = False,
        cameras: int = 0,
        camera_scale: float = 1.0,
        drop_path_rate: float = 0.0,
        stem: str = "patch",
        instance_norm: bool = False,
        sees: bool = False,
        stripes: int = 0,
        encoder: str = "clip",
    ) -> None:
        super().__init__()
        self.grid = grid
        self.camera_scale = camera_scale
        std = width**-0.5
        eps = EPS[encoder]
        self.conv1: nn.Conv2d | ConvStem
        if stem != "patch":
            self.conv1 = ConvStem(width, stride, instance_norm, deep=stem == "lite0-deep")
        else:
            self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=stride, bias=False)
        self.visibility = VisibilityHead(width) if sees else None
        self.striped = StripePooling(width, stripes) if stripes else None
        self.cls_share = nn.Parameter(torch.full((1,), 0.1)) if stripes else None
        self.unseen = nn.Parameter(torch.zeros(width)) if sees else None
        self.class_embedding = nn.Parameter(std * torch.randn(width))
        self.positional_embedding = nn.Parameter(std * torch.randn(grid[0] * grid[1] + 1, width))
        self.camera_embedding = nn.Parameter(0.02 * torch.randn(cameras, width)) if cameras else None
        self.ln_pre = nn.LayerNorm(width) if encoder == "clip" else nn.Identity()
        self.transformer = Transformer(width, layers, heads, int(width * mlp_ratio), quick_gelu, eps)
        self.drop_path_rate = drop_path_rate
        rates = drop_path_rate * torch.arange(1, layers) / max(layers - 1, 1)
        self.register_buffer("drop_rates", rates.repeat_interleave(2).view(layers - 1, 2, 1), persistent=False)
        self.ln_post = nn.LayerNorm(width, eps=eps)
        self.proj = nn.Parameter(std * torch.randn(width, joint_dim)) if joint_dim else None

    def kept_branches(self, batch: int) -> Sequence[Tensor | None]:
        """For each block (2, B, 1, 1) factors on its residual branches: 0 where an image skips one, else scaled up to
        keep the mean; None where nothing is dropped. All are drawn at once."""
        if not self.training or not self.drop_path_rate:
            return [None] * len(self.transformer.resblocks)
        rates = self.drop_rates
        drawn = torch.rand(*rates.shape[:2], batch, device=rates.device) >= rates
        return [None, *(drawn / (1 - rates)).view(*drawn.shape, 1, 1)]

    def embed(
        self, images: Tensor, cameras: Tensor | None = None, patch_scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Tokens before the first block (B, 1+N, d), the visibility head's logits, the stripes' part of the feature
        (B, d). Arguments as in `forward`."""
        grid = self.conv1(images)
        x = grid.flatten(2).transpose(1, 2)
        if patch_scale is not None:
            x = x * patch_scale.unsqueeze(-1).to(x.dtype)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        visibility = pooled = None
        if self.visibility is not None and self.unseen is not None:
            visibility = self.visibility(grid)
            # detached: the map says what is seen, it does not bend toward what tells the training people apart
            seen = torch.sigmoid(visibility[:, SEEN]).detach()
            pooled = self.striped(grid, seen) if self.striped is not None else None
            share = seen.flatten(1).unsqueeze(2)
            cls = cls + (x * share).sum(1, keepdim=True) / share.sum(1, keepdim=True).clamp(min=_LEAST_SEEN)
            x = x * share + self.unseen.to(x.dtype) * (1 - share)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding.to(x.dtype)
        if cameras is not None:
            if self.camera_embedding is None:
                raise SpecError("camera indices came, but this model has no camera embedding (spec.cameras is 0)")
            x = x + (self.camera_scale * self.camera_embedding[cameras]).unsqueeze(1).to(x.dtype)
        return self.ln_pre(x), visibility, pooled

    def forward(
        self,
        images: Tensor,
        *,
        blocks: Collection[int] = (),
        cameras: Tensor | None = None,
        patch_scale: Tensor | None = None,
        with_cls_attention: bool = False,
    ) -> BackboneOutput:
        """Encode preprocessed images (B, 3, H, W), float.

        `blocks`: 1-based numbers of the blocks whose output tokens are wanted. `cameras`: (B,) int64 indices.
        `patch_scale`: (B, N) factors on the patch embeddings before the position is added (saliency training).
        `with_cls_attention`: also return the cls logits of the last block.

        Raises:
            SpecError: camera indices came, and the model has no camera embedding.
        """
        x, visibility, pooled = self.embed(images, cameras, patch_scale)
        tokens, logits = [], None
        last, kept = len(self.transformer.resblocks), self.kept_branches(x.shape[0])
        for number, block in enumerate(self.transformer.resblocks, start=1):
            x, logits = block(x, with_cls_attention and number == last, kept[number - 1])
            if number in blocks:
                tokens.append(x)
        cls = self.ln_post(x[:, 0])
        if pooled is not None:
            cls = self.cls_share * cls + pooled
        return BackboneOutput(cls, cls @ self.proj if self.proj is not None else None, tokens, logits, visibility)
