"""From a trained mask generator's tensors to the packed weights that the kernels read. Plain tensors in and out.

Shapes: N output channels · C input channels. Packed weights have the output channel last, so that tiles load whole
lines: (1, C, N) for 1×1, (9, C, N) for 3×3 as implicit GEMM, (16, C, N) for 3×3 by Winograd, (9, N) depthwise,
(C, N) linear. The number of taps says which algorithm runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import contract

_G = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
"""Weight transform of F(2×2, 3×3), arXiv 1509.09308, section 4.1."""


@dataclass(frozen=True)
class PackedHead:
    """A mask head ready to run: `head` is "paper" or "lite", `tensors` are (weight, bias) per layer in order."""

    head: str
    tensors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if self.head not in contract.HEADS or len(self.tensors) != contract.WEIGHTS[self.head]:
            raise ValueError(
                f"expected a head and its number of tensors out of {contract.WEIGHTS}, got {self.head!r} with "
                f"{len(self.tensors)}"
            )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PackedHead:
        """The same head on another device or in another dtype."""
        return PackedHead(self.head, tuple(t.to(device=device, dtype=dtype) for t in self.tensors))


def fold_batch_norm(
    weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Convolution weight (N, …) without bias, then batch normalisation with running statistics (N,) → weight, bias.

    Computed in float64, returned in float64.
    """
    scale = gamma.double() / torch.sqrt(variance.double() + eps)
    return weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1)), beta.double() - mean.double() * scale


def pack_convolution(weight: Tensor, winograd: bool = False) -> Tensor:
    """(N, C, k, k) → (k·k, C, N), or (16, C, N) for Winograd. k is 1 or 3; the dtype stays.

    Raises:
        ValueError: another kernel size, or Winograd asked of a 1×1.
    """
    size = tuple(weight.shape[2:])
    if size not in ((1, 1), (3, 3)) or (winograd and size != (3, 3)):
        raise ValueError(
            f"expected a kernel of 3×3, or of 1×1 without winograd, got size {size} with winograd={winograd}"
        )
    if not winograd:
        return weight.permute(2, 3, 1, 0).reshape(size[0] * size[1], weight.shape[1], weight.shape[0]).contiguous()
    g = _G.to(weight.device)
    points = torch.einsum("ij,ncjk,lk->ilcn", g, weight.double(), g)
    return points.reshape(16, weight.shape[1], weight.shape[0]).to(weight.dtype).contiguous()


def unpack_convolution(packed: Tensor) -> Tensor:
    """The inverse of `pack_convolution`: (taps, C, N) → (N, C, k, k); exact up to rounding for Winograd."""
    taps, channels, out = packed.shape
    if taps == 16:
        inverse = torch.linalg.pinv(_G).to(packed.device)
        points = packed.double().reshape(4, 4, channels, out)
        return torch.einsum("ij,jkcn,lk->ncil", inverse, points, inverse).to(packed.dtype)
    size = 3 if taps == 9 else 1
    return packed.reshape(size, size, channels, out).permute(3, 2, 0, 1).contiguous()


def pack_paper(
    convolutions: list[tuple[Tensor, Tensor]],
    linear: tuple[Tensor, Tensor],
    winograd: bool = False,
    dtype: torch.dtype = torch.float16,
) -> PackedHead:
    """Three folded (weight (N, C, 3, 3), bias (N,)) and the linear (weight (d, d), bias (d,)) → packed `paper` head.

    `winograd` packs the first two convolutions for Winograd: faster from `contract.WINOGRAD_FROM_WINDOWS` pool windows
    per batch on, and 16/9 of the memory. The third has no 2×2 pool and stays an implicit GEMM.
    """
    tensors: list[Tensor] = []
    for index, (weight, bias) in enumerate(convolutions):
        tensors += [pack_convolution(weight, winograd and index < 2), bias]
    tensors += [linear[0].T.contiguous(), linear[1]]
    return PackedHead("paper", tuple(t.detach().to(dtype) for t in tensors))


def pack_lite(
    reduction: tuple[Tensor, Tensor],
    blocks: list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]],
    linear: tuple[Tensor, Tensor],
    dtype: torch.dtype = torch.float16,
) -> PackedHead:
    """Folded reduction, three (depthwise, pointwise) pairs and the linear, each (weight, bias) → packed `lite` head."""
    tensors = [pack_convolution(reduction[0]), reduction[1]]
    for (depth_weight, depth_bias), (point_weight, point_bias) in blocks:
        tensors += [depth_weight.reshape(-1, 9).T.contiguous(), depth_bias, pack_convolution(point_weight), point_bias]
    tensors += [linear[0].T.contiguous(), linear[1]]
    return PackedHead("lite", tuple(t.detach().to(dtype) for t in tensors))
