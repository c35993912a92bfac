"""The mask generators: layout of the tokens on the grid, the start at one half, both forms by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dpm_edge.model.mask_generator import MASK_GENERATORS, LiteMaskGenerator, MaskGenerator, tokens_to_grid

GRID = (9, 5)


def tokens(batch: int = 2, width: int = 8, blocks: int = 4) -> list[torch.Tensor]:
    return [torch.randn(batch, 1 + GRID[0] * GRID[1], width) for _ in range(blocks)]


def trained(head: torch.nn.Module) -> torch.nn.Module:
    """Random weights and BN statistics, so that nothing is hidden by a zero or a one."""
    with torch.no_grad():
        for tensor in head.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1 if tensor.dim() == 1 else torch.randn_like(tensor) * 0.3)
    return head.eval()


def test_tokens_to_grid_puts_token_r_c_of_block_k_where_it_belongs() -> None:
    blocks = tokens()
    grid = tokens_to_grid(blocks, GRID)
    assert grid.shape == (2, 32, *GRID)
    for k, r, c in ((0, 0, 0), (1, 3, 2), (3, 8, 4)):
        torch.testing.assert_close(grid[:, 8 * k : 8 * k + 8, r, c], blocks[k][:, 1 + r * GRID[1] + c])


@pytest.mark.parametrize("form", MASK_GENERATORS)
def test_every_gate_starts_at_one_half(form: str) -> None:
    mask = MASK_GENERATORS[form](8, GRID)(tokens())
    assert mask.shape == (2, 8)
    assert (mask == 0.5).all()


def normalised(x: torch.Tensor, bn: torch.nn.Module) -> torch.Tensor:
    """BN in evaluation, ReLU: written from the formula."""
    column = lambda v: v.view(1, -1, 1, 1)
    x = (x - column(bn.running_mean)) / torch.sqrt(column(bn.running_var) + bn.eps)
    return (x * column(bn.weight) + column(bn.bias)).clamp(min=0)


def halved(x: torch.Tensor) -> torch.Tensor:
    """2×2 max-pool with numpy's reshape; an odd last row or column falls away."""
    b, c, h, w = x.shape
    even = x[:, :, : h // 2 * 2, : w // 2 * 2].numpy().reshape(b, c, h // 2, 2, w // 2, 2)
    return torch.from_numpy(np.max(even, axis=(3, 5)))


@torch.no_grad()
def test_paper_form_by_hand() -> None:
    head, blocks = trained(MaskGenerator(8, GRID)), tokens()
    x = tokens_to_grid(blocks, GRID)
    x = halved(normalised(F.conv2d(x, head.conv1.weight, padding=1), head.bn1))
    x = halved(normalised(F.conv2d(x, head.conv2.weight, padding=1), head.bn2))
    x = normalised(F.conv2d(x, head.conv3.weight, padding=1), head.bn3)
    expected = 1 / (1 + torch.exp(-(x.flatten(2).max(2).values @ head.linear.weight.T + head.linear.bias)))
    torch.testing.assert_close(head(blocks), expected)
    assert [tuple(c.weight.shape) for c in (head.conv1, head.conv2, head.conv3)] == [
        (16, 32, 3, 3),
        (8, 16, 3, 3),
        (8, 8, 3, 3),
    ]


@torch.no_grad()
def test_lite_form_by_hand() -> None:
    head, blocks = trained(LiteMaskGenerator(8, GRID)), tokens()

    def separable(x: torch.Tensor, block: torch.nn.Module) -> torch.Tensor:
        x = normalised(F.conv2d(x, block.depthwise.weight, padding=1, groups=x.shape[1]), block.bn1)
        return normalised(torch.einsum("bchw,oc->bohw", x, block.pointwise.weight[:, :, 0, 0]), block.bn2)

    x = torch.einsum("bchw,oc->bohw", tokens_to_grid(blocks, GRID), head.reduce.weight[:, :, 0, 0])
    x = halved(separable(normalised(x, head.bn0), head.block1))
    x = separable(halved(separable(x, head.block2)), head.block3)
    expected = torch.sigmoid(x.flatten(2).max(2).values @ head.linear.weight.T + head.linear.bias)
    torch.testing.assert_close(head(blocks), expected)


def test_every_parameter_of_a_trained_head_gets_a_gradient() -> None:
    for form in MASK_GENERATORS.values():
        head = form(8, GRID)
        torch.nn.init.normal_(head.linear.weight)
        head(tokens(batch=4)).pow(2).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
