"""The network as torch serves it: weights cast, the mask generator's batch norms folded, its fused kernels on a GPU.

Shapes: B images · h×w grid · N = h·w patch tokens · d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dpm_edge.model.foreign_network import AnyNetwork, ForeignNetwork
from dpm_edge.model.mask_generator import LiteMaskGenerator, MaskGenerator

BLOCKS, LEAST_GRID = 4, 4
"""Blocks and grid side that the fused mask head takes."""


def for_serving(net: AnyNetwork, dtype: torch.dtype, device: torch.device, *, fused: bool) -> AnyNetwork:
    """Prepare a network for inference, in place: `forward` then wants images of `dtype` on `device`.

    The BN neck stays float32. `fused` puts our kernels (Triton) in place of the mask generator's convolutions where
    they take its shape.
    """
    net = net.eval().requires_grad_(False).to(device)
    if isinstance(net, ForeignNetwork):
        return net.to(dtype)
    fits = len(net.spec.mask_blocks) == BLOCKS and min(net.spec.grid) >= LEAST_GRID
    if fused and fits:
        net.mask_generator = FusedMaskGenerator(net.mask_generator, dtype)  # type: ignore[assignment]
    else:
        net.mask_generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.to(dtype)
    net.neck.float()
    return net


class FusedMaskGenerator(nn.Module):
    """A trained mask generator on the fused kernels: the same call, no concatenation, no transpose; inference only.

    The paper's head keeps its weights twice on request of the batch: for Winograd, and as they are for few images.
    """

    def __init__(self, trained: MaskGenerator | LiteMaskGenerator, dtype: torch.dtype) -> None:
        super().__init__()
        from dpm_edge.kernels.mask_head import contract, op

        self.grid = trained.grid
        self._apply_head = op.mask_head
        windows = ((self.grid[0] + 1) // 2) * ((self.grid[1] + 1) // 2)
        self._winograd_from = -(-contract.WINOGRAD_FROM_WINDOWS // windows)
        if isinstance(trained, MaskGenerator):
            linear = (trained.linear.weight, trained.linear.bias)
            pairs = ((trained.conv1, trained.bn1), (trained.conv2, trained.bn2), (trained.conv3, trained.bn3))
            folded = [_folded(*pair) for pair in pairs]
            self._few = op.pack_paper(folded, linear, winograd=False, dtype=dtype)
            self._many = op.pack_paper(folded, linear, winograd=True, dtype=dtype)
        else:
            linear = (trained.linear.weight, trained.linear.bias)
            blocks = [
                (_folded(one.depthwise, one.bn1), _folded(one.pointwise, one.bn2))
                for one in (trained.block1, trained.block2, trained.block3)
            ]
            self._few = self._many = op.pack_lite(_folded(trained.reduce, trained.bn0), blocks, linear, dtype=dtype)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """Four token tensors (B, 1+N, d) → mask (B, d) float32 in (0, 1)."""
        packed = self._many if tokens[0].shape[0] >= self._winograd_from else self._few
        return self._apply_head([block.contiguous() for block in tokens], packed, self.grid).float()


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    from dpm_edge.kernels.mask_head.op import fold_batch_norm

    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None, "a batch norm with running statistics"
    return fold_batch_norm(convolution.weight, norm.weight, norm.bias, mean, variance, norm.eps)
