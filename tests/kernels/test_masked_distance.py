"""masked_distance in the interpreter against float64 written out query by query, and against dpm_edge.metrics.

Shapes: B queries · N targets · D dimensions.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dpm_edge import metrics
from dpm_edge.kernels.masked_distance import contract, launch, op

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]
SHAPES = [(1, 1, 7), (7, 129, 129), (2, 1023, 40), (17, 65, 128), (33, 130, 16)]
"""B, N, D; past 16 queries the tiles of large batches run."""


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tolerance(dtype: torch.dtype) -> float:
    return contract.TOLERANCE[name(dtype)]


def make(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Fresh queries, masks, targets near the queries, and row scales for int8."""
    b, n, d = shape
    q, m = torch.randn(b, d), torch.rand(b, d)
    t = torch.nn.functional.normalize(torch.randn(n, d) + q[torch.randint(b, (n,))], dim=1)
    if dtype != torch.int8:
        return q, m, t.to(dtype), None
    scale = t.abs().amax(1) / 127
    return q, m, (t / scale[:, None]).round().to(torch.int8), scale


def written_out(q: Tensor, m: Tensor, t: Tensor, scale: Tensor | None, own: Tensor | None = None) -> Tensor:
    """Method section 4 as it is printed, one query at a time, float64: mask every target, normalise, inner product."""
    t = t.double() if scale is None else t.double() * scale.double()[:, None]
    t = t if own is None else t * own.double()
    rows = []
    for q_d, m_d in zip(q.double(), m.double()):
        masked = m_d * t
        rows.append((masked @ (q_d / q_d.norm())) / masked.norm(dim=1))
    return torch.stack(rows)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every buffer that a launch allocates starts as NaN (integers: huge), so that a value never written shows."""

    def poisoned(*size, **options):  # type: ignore[no-untyped-def]
        out = plain(*size, **options)
        return out.fill_(torch.nan if out.is_floating_point() else torch.iinfo(out.dtype).max)

    plain = torch.empty
    monkeypatch.setattr(launch.torch, "empty", poisoned)


def assert_close(came: Tensor, wanted: Tensor, limit: float) -> None:
    error = (came.double() - wanted).abs() / wanted.abs().max()
    worst = int(error.nan_to_num(math.inf).argmax())
    at = (worst // wanted.shape[1], worst % wanted.shape[1])
    assert error.flatten()[worst] < limit, f"at {at}: {came[at].item()} for {wanted[at].item()}"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_similarity_equals_the_formula(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    q, m, t, scale = make(shape, dtype)
    came = op.masked_similarity(q, m, t, row_scale=scale)
    assert came.dtype == torch.float32
    assert_close(came, written_out(q, m, t, scale), tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_distance_and_target_masks(dtype: torch.dtype) -> None:
    q, m, t, scale = make((3, 70, 33), dtype)
    own = torch.rand(t.shape)
    wanted = written_out(q, m, t, scale, own)
    assert_close(op.masked_similarity(q, m, t, row_scale=scale, target_masks=own), wanted, tolerance(dtype))
    clipped = wanted.clamp(-1 + 1e-5, 1 - 1e-5)
    assert_close(op.masked_arccos(q, m, t, row_scale=scale, target_masks=own), clipped.arccos(), tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=name)
def test_margin_is_added_to_the_angle_of_the_label(dtype: torch.dtype) -> None:
    q, m, w, _ = make((5, 40, 33), dtype)
    w[7] = (-q[4]).to(dtype)  # further than π − margin from query 4 whatever its mask keeps
    m[4] = 1.0
    labels = torch.tensor([0, 39, 12, 3, 7])
    s = written_out(q, m, w, None)
    wanted = 30 * s
    for i, label in enumerate(labels):
        angle = float(s[i, label].clamp(-1, 1).arccos())
        past = angle + 0.3 > math.pi
        wanted[i, label] = 30 * (s[i, label] - 0.3 * math.sin(0.3) if past else math.cos(angle + 0.3))
    assert float(s[4, 7]) < -math.cos(0.3)
    assert_close(op.margin_logits(q, m, w, labels), wanted, tolerance(dtype))


def test_same_numbers_as_the_metric_of_evaluation() -> None:
    q, m, t, _ = make((4, 50, 24), torch.float32)
    own = torch.rand(t.shape)
    plain = metrics.similarity(q, t, metric="masked", query_masks=m)
    mutual = metrics.similarity(q, t, metric="mutual", query_masks=m, target_masks=own)
    torch.testing.assert_close(op.masked_similarity(q, m, t), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(op.masked_similarity(q, m, t, target_masks=own), mutual, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpret", ["0", "1"], ids=["reference", "kernel"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nothing_left_is_zero_and_never_nan(
    dtype: torch.dtype, interpret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    q, m, t, scale = make((4, 20, 16), dtype)
    q[0] = 0
    m[1] = 0
    m[2], t[5, :] = 0, 0
    m[2, 3], t[:, 3] = 1, 0  # query 2 sees only a dimension in which every target is zero
    s = op.masked_similarity(q, m, t, row_scale=scale)
    assert not s.isnan().any()
    assert (s[:3] == 0).all() and (s[:, 5] == 0).all()
    assert (s[3, :5] != 0).all()
    scores, rows = op.masked_topk(q, m, t, 3, row_scale=scale)
    assert (scores[:3] == 0).all()
    assert rows[:3].tolist() == [[0, 1, 2]] * 3


def test_tiny_and_large_queries_and_masks_keep_their_digits() -> None:
    q, m, t, _ = make((4, 30, 64), torch.float16)
    wanted = written_out(q, m, t, None)
    size = torch.tensor([1e-6, 1e4, 1.0, 1.0])[:, None]
    came = op.masked_similarity(q * size, m * torch.tensor([1.0, 1.0, 1e-5, 1e3])[:, None], t)
    assert_close(came, wanted, tolerance(torch.float16))


def test_sign_of_the_row_scale_counts() -> None:
    q, m, t, scale = make((2, 10, 32), torch.int8)
    assert scale is not None
    scale[3], scale[4] = -scale[3], 0.0
    s = op.masked_similarity(q, m, t, row_scale=scale)
    wanted = written_out(q, m, t, scale).nan_to_num(0)
    assert_close(s, wanted, tolerance(torch.int8))


def test_compiles_and_passes_opcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # same operators, on the faster reference
    q, m, t, _ = make((2, 9, 8), torch.float32)
    inputs = (q, m, t, None, None, None, "similarity", 1.0, 0.0)
    torch.library.opcheck(torch.ops.dpm_edge.masked_distance, inputs)
    torch.library.opcheck(torch.ops.dpm_edge.masked_topk, (q, m, t, 3, *(None,) * 7))
    compiled = torch.compile(op.masked_similarity, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, m, t), op.masked_similarity(q, m, t))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"m": torch.ones(2, 7)}, r"expected m to be a float \(2, 8\) beside q on cpu, got float32 \(2, 7\) on cpu"),
        ({"t": torch.ones(5, 9)}, r"\(N, 8\) with N ≥ 1"),
        ({"t": torch.ones(8, 5).T}, r"Call \.contiguous\(\)"),
        ({"t": torch.ones(5, 8, dtype=torch.int8)}, "expected row_scale with int8 targets"),
        ({"q": torch.ones(0, 8), "m": torch.ones(0, 8)}, "B ≥ 1"),
        ({"target_masks": torch.ones(4, 8)}, r"contiguous float \(5, 8\)"),
    ],
)
def test_an_error_says_what_was_expected(change: dict[str, Tensor], said: str) -> None:
    arguments = {"q": torch.ones(2, 8), "m": torch.ones(2, 8), "t": torch.ones(5, 8)} | change
    with pytest.raises(ValueError, match=said):
        op.masked_similarity(**arguments)
