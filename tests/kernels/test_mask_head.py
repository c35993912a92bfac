"""The mask head's kernels in the interpreter against torch's own layers in float64.

Shapes: B images · H×W grid · d width · tokens four of (B, 1 + H·W, d) · mask (B, d).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpm_edge.kernels.mask_head import contract, launch, op, reference
from dpm_edge.kernels.mask_head.contract import Tile
from dpm_edge.kernels.mask_head.pack import pack_convolution, unpack_convolution
from dpm_edge.model.mask_generator import LiteMaskGenerator, MaskGenerator

Grid = tuple[int, int]
SHAPES = [(2, (4, 5), 32), (1, (5, 4), 24), (3, (4, 4), 40), (1, (7, 6), 16)]
"""Batch, grid, width: odd sides, the smallest grid, widths that no tile divides."""
FORMS = [("paper", False), ("paper", True), ("lite", False)]
"""Head, Winograd."""


def trained(head: str, width: int, grid: Grid) -> MaskGenerator | LiteMaskGenerator:
    """A mask generator whose normalisation and linear are not the identity."""
    module = (MaskGenerator if head == "paper" else LiteMaskGenerator)(width, grid)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    nn.init.normal_(module.linear.weight, std=width**-0.5)
    nn.init.normal_(module.linear.bias, std=0.1)
    return module.eval().requires_grad_(False)


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    return op.fold_batch_norm(
        convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps
    )  # fmt: skip


def packed(module: MaskGenerator | LiteMaskGenerator, winograd: bool, dtype: torch.dtype) -> op.PackedHead:
    linear = (module.linear.weight, module.linear.bias)
    if isinstance(module, MaskGenerator):
        layers = [(module.conv1, module.bn1), (module.conv2, module.bn2), (module.conv3, module.bn3)]
        return op.pack_paper([folded(*layer) for layer in layers], linear, winograd=winograd, dtype=dtype)
    blocks = [
        (folded(block.depthwise, block.bn1), folded(block.pointwise, block.bn2))
        for block in (module.block1, module.block2, module.block3)
    ]
    return op.pack_lite(folded(module.reduce, module.bn0), blocks, linear, dtype=dtype)


def random_tokens(batch: int, grid: Grid, width: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(batch, 1 + grid[0] * grid[1], width).to(dtype) for _ in range(4)]


def relative(got: Tensor, wanted: Tensor) -> float:
    """Norm-wise relative error; NaN anywhere makes it NaN, which no tolerance admits."""
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Tensors that torch allocates without a value are full of NaN, so that unwritten outputs show."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("head", "winograd"), FORMS)
@pytest.mark.parametrize(("batch", "grid", "width"), SHAPES[:2])
def test_kernel_equals_the_models_module_in_float64(head, winograd, batch, grid, width, dtype):
    module = trained(head, width, grid)
    tokens = random_tokens(batch, grid, width, dtype)
    feature = nn.functional.normalize(torch.randn(batch, width), dim=1).to(dtype)
    wanted = torch.sigmoid(_logits(module.double(), [block.double() for block in tokens]))
    mask, masked, squared = op.mask_head_for_matching(tokens, packed(module, winograd, dtype), grid, feature)
    tolerance = contract.TOLERANCE[str(dtype).removeprefix("torch.")]
    assert mask.dtype == masked.dtype == squared.dtype == dtype
    assert relative(mask, wanted) <= tolerance
    assert relative(masked, feature.double() * wanted) <= tolerance
    assert relative(squared, wanted * wanted) <= 2 * tolerance  # a square doubles the relative error


@pytest.mark.parametrize(("head", "winograd"), FORMS)
@pytest.mark.parametrize(("batch", "grid", "width"), SHAPES[2:])
def test_small_grids_and_ragged_widths(head, winograd, batch, grid, width):
    module = trained(head, width, grid)
    tokens = random_tokens(batch, grid, width, torch.float32)
    wanted = torch.sigmoid(_logits(module.double(), [block.double() for block in tokens]))
    assert relative(op.mask_head(tokens, packed(module, winograd, torch.float32), grid), wanted) <= 1e-5


def _logits(module: MaskGenerator | LiteMaskGenerator, tokens: list[Tensor]) -> Tensor:
    """The module up to its sigmoid, which it computes in float32."""
    seen: list[Tensor] = []
    hook = module.linear.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    module(tokens)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(("head", "winograd"), FORMS)
def test_without_interpreter_a_cpu_runs_the_reference(monkeypatch, head, winograd):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    module = trained(head, 24, (5, 4))
    tokens = random_tokens(2, (5, 4), 24, torch.float64)
    monkeypatch.setattr(launch, "gates", None)  # would fail if a kernel were launched
    got = op.mask_head(tokens, packed(module, winograd, torch.float64), (5, 4))
    assert relative(got, torch.sigmoid(_logits(module.double(), tokens))) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("tile", [Tile(32, 16, 16, 2, 4, 1), Tile(64, 32, 16, 8, 4, 1, descriptors=True)], ids=str)
def test_first_convolution_for_any_tile_and_any_number_of_parts(tile, parts):
    grid, channels, out = (5, 4), 32, 24
    tokens = random_tokens(3, grid, channels, torch.float32)
    weight, bias = torch.randn(out, 4 * channels, 3, 3) / 34, torch.randn(out)
    x = torch.cat([block[:, 1:] for block in tokens], dim=2).transpose(1, 2).unflatten(2, grid).double()
    convolved = nn.functional.conv2d(x, weight.double(), bias.double(), padding=1).relu()
    wanted = nn.functional.max_pool2d(convolved, 2).flatten(2).transpose(1, 2)
    direct = launch.convolve_and_pool(tokens, pack_convolution(weight), bias, grid, 2, tile, parts)
    points = launch.convolve_and_pool(tokens, pack_convolution(weight, winograd=True), bias, grid, 2, tile)
    assert relative(direct, wanted) < 1e-6
    assert relative(points, wanted) < 1e-6


def test_the_cls_token_is_not_read():
    module = trained("paper", 24, (4, 5))
    tokens = random_tokens(2, (4, 5), 24, torch.float32)
    changed = [torch.cat([torch.full_like(block[:, :1], 1e4), block[:, 1:]], dim=1) for block in tokens]
    head = packed(module, False, torch.float32)
    assert torch.equal(op.mask_head(tokens, head, (4, 5)), op.mask_head(changed, head, (4, 5)))


@pytest.mark.parametrize(("size", "winograd"), [(1, False), (3, False), (3, True)])
def test_packing_keeps_the_weights(size, winograd):
    weight = torch.randn(5, 7, size, size, dtype=torch.float64)
    back = unpack_convolution(pack_convolution(weight, winograd))
    torch.testing.assert_close(back, weight, rtol=1e-12, atol=1e-12)


def test_reference_is_the_definition():
    """Without normalisation and with a centre-only kernel the head is arithmetic that can be done by hand."""
    width, grid = 2, (4, 4)
    weights = []
    for channels, out in ((8, 4), (4, 2), (2, 2)):
        weight = torch.zeros(9, channels, out, dtype=torch.float64)
        weight[4, 0, :] = 1  # the centre tap of the first channel
        weights += [weight, torch.zeros(out, dtype=torch.float64)]
    weights += [torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)]
    tokens = [torch.randn(1, 17, width, dtype=torch.float64) for _ in range(4)]
    wanted = torch.sigmoid(tokens[0][0, 1:, 0].max().clamp(min=0)).expand(1, 2)
    torch.testing.assert_close(reference.mask_head(tokens, "paper", weights, *grid), wanted)


@pytest.mark.parametrize("arch", [80, 87, 90])
@pytest.mark.parametrize(("tiles", "steps"), [(1, 1), (24, 432), (192, 432), (7, 31), (1000, 12)])
def test_splits_never_leave_a_device_emptier_than_one_part(arch, tiles, steps):
    parts = contract.splits(arch, tiles, steps)
    assert 1 <= parts <= max(1, steps // 4)
    if tiles >= 16 * contract.STREAMING_MULTIPROCESSORS[arch]:
        assert parts == 1


@pytest.mark.slow
@pytest.mark.parametrize("matching", [False, True])
def test_operator_passes_torchs_own_checks(matching):
    tokens = random_tokens(2, (4, 4), 16, torch.float32)
    head = packed(trained("paper", 16, (4, 4)), True, torch.float32)
    arguments = (tokens, "paper", list(head.tensors), 4, 4)
    if matching:
        torch.library.opcheck(torch.ops.dpm_edge.mask_head_for_matching.default, (*arguments, torch.randn(2, 16)))
    else:
        torch.library.opcheck(torch.ops.dpm_edge.mask_head.default, arguments)


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.packed = packed(trained("lite", 16, (4, 4)), False, torch.float32)

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return op.mask_head([a, b, c, d], self.packed, (4, 4)) * 2


def test_compile_and_export_pass_through():
    tokens = random_tokens(2, (4, 4), 16, torch.float32)
    head = _Head()
    wanted = head(*tokens)
    assert torch.equal(torch.compile(head, backend="aot_eager", fullgraph=True)(*tokens), wanted)
    exported = torch.export.export(head, tuple(tokens))
    assert any("mask_head" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(exported.module()(*tokens), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, f: (t[:3], f, (4, 4)), "expected 4 token tensors"),
        (lambda t, f: (t, f, (2, 8)), "at least 4×4"),
        (lambda t, f: (t, f, (4, 5)), "network's own grid"),
        (lambda t, f: ([block.double() for block in t], f.double(), (4, 4)), "one dtype and one device"),
        (lambda t, f: ([t[0], t[1], t[2], t[3][:1]], f, (4, 4)), "four token tensors of one shape"),
        (lambda t, f: (t, f[:, :8], (4, 4)), r"expected feature \(2, 16\), got \(2, 8\)"),
    ],
)  # fmt: skip
def test_an_error_says_what_was_expected(change, message):
    head = packed(trained("paper", 16, (4, 4)), False, torch.float32)
    tokens, feature, grid = change(random_tokens(2, (4, 4), 16, torch.float32), torch.randn(2, 16))
    with pytest.raises(ValueError, match=message):
        op.mask_head_for_matching(tokens, head, grid, feature)


def test_a_packed_head_knows_its_number_of_tensors():
    with pytest.raises(ValueError, match="number of tensors out of"):
        op.PackedHead("paper", (torch.zeros(1),))
    with pytest.raises(ValueError, match="expected a kernel of 3×3"):
        pack_convolution(torch.zeros(2, 2, 5, 5))
