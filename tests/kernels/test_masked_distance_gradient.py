"""Gradients of masked_distance: the reference by gradcheck in float64, the kernels in the interpreter against autograd.

Shapes: B features · C prototypes · D dimensions.
"""

from __future__ import annotations

import pytest
import torch
from test_masked_distance import name
from torch import Tensor

from dpm_edge.kernels.masked_distance import op, reference

SHAPES = [(1, 1, 7), (5, 70, 33), (33, 129, 16)]


def make(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, c, d = shape
    return torch.randn(b, d), torch.rand(b, d), torch.randn(c, d), torch.randint(c, (b,))


@pytest.mark.parametrize("what", ["similarity", "margin_logits", "arccos"])
def test_reference_passes_gradcheck(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    q, m, w, labels = make((3, 5, 6))
    w[2] = -q[1] + 0.01 * torch.randn(6)  # beyond the margin's fallback
    labels[1], m[1] = 2, 1.0
    inputs = [x.double().requires_grad_() for x in (q, m, w)]
    run = {
        "similarity": op.masked_similarity,
        "arccos": op.masked_arccos,
        "margin_logits": lambda q, m, w: op.margin_logits(q, m, w, labels, scale=2.0),
    }[what]
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 2e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)], ids=str
)
@pytest.mark.parametrize("margin", [True, False], ids=["logits", "similarity"])
def test_kernel_matches_autograd_of_the_reference(
    shape: tuple[int, int, int], dtype: torch.dtype, limit: float, margin: bool
) -> None:
    q, m, w, labels = make(shape)
    inputs = [q.requires_grad_(), m.requires_grad_(), w.to(dtype).requires_grad_()]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    if margin:
        out = op.margin_logits(*inputs, labels)
        wanted_out = reference.margin_logits(*wide, labels, 30.0, 0.30)
    else:
        out, wanted_out = op.masked_similarity(*inputs), reference.similarity(*wide)
    grad = torch.randn(out.shape)
    came = torch.autograd.grad(out, inputs, grad)
    wanted = torch.autograd.grad(wanted_out, wide, grad.double())
    for which, a, b, x in zip("qmw", came, wanted, inputs):
        assert a.dtype == x.dtype
        error = float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3))
        assert error < limit, f"gradient of {which} ({name(dtype)}): {error}"


@pytest.mark.parametrize("interpret", ["0", "1"], ids=["reference", "kernel"])
def test_gradients_stay_finite(interpret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    q, m, w, labels = make((5, 12, 16))
    q[0], m[1], w[3] = 0, 0, 0
    w[4], w[5], m[2] = q[2], -q[3], 1  # cosines of 1 and −1, where the arccos has no slope
    labels[2], labels[3], m[3] = 4, 5, 1
    inputs = [x.requires_grad_() for x in (q, m, w)]
    loss = torch.nn.functional.cross_entropy(op.margin_logits(*inputs, labels), labels)
    for gradient in torch.autograd.grad(loss, inputs):
        assert gradient.isfinite().all()
    for gradient in torch.autograd.grad(op.masked_arccos(*inputs).sum(), inputs):
        assert gradient.isfinite().all()


def test_nothing_of_b_by_c_is_saved_for_the_backward_pass() -> None:
    q, m, w, labels = make((4, 50, 16))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        op.margin_logits(q.requires_grad_(), m, w.requires_grad_(), labels)
    assert kept
    assert all(x.shape != (4, 50) for x in kept)


def test_int8_targets_have_no_gradient() -> None:
    q, m, _, _ = make((2, 4, 8))
    t, scale = torch.ones(4, 8, dtype=torch.int8), torch.ones(4)
    out = op.masked_similarity(q.requires_grad_(), m, t, row_scale=scale)
    with pytest.raises(ValueError, match=r"expected float targets .* for a gradient"):
        out.sum().backward()
