"""Fused top-k in the interpreter against a full sort in float64.

Shapes: B queries · N targets · D dimensions · k results.
"""

from __future__ import annotations

import pytest
import torch
from test_masked_distance import DTYPES, make, name, tolerance, written_out
from torch import Tensor

from dpm_edge.kernels.masked_distance import launch, op


def brute_force(s: Tensor, k: int, keep: Tensor) -> list[list[tuple[float, int]]]:
    """Best k kept (score, row) of each query by sorting Python tuples."""
    best = []
    for scores, kept in zip(s.tolist(), keep.expand(s.shape).tolist()):
        ranked = sorted((-score, row) for row, score in enumerate(scores) if kept[row])[:k]
        best.append([(-score, row) for score, row in ranked] + [(-torch.inf, -1)] * (k - len(ranked)))
    return best


def assert_best(scores: Tensor, rows: Tensor, s: Tensor, k: int, keep: Tensor, limit: float) -> None:
    """Scores agree; rows agree wherever the next score is further than the tolerance."""
    assert scores.shape == rows.shape == (s.shape[0], k)
    assert (scores.dtype, rows.dtype) == (torch.float32, torch.int64)
    for i, wanted in enumerate(brute_force(s, k, keep)):
        came = list(zip(scores[i].tolist(), rows[i].tolist()))
        found = [row for _, row in came if row >= 0]
        assert len(set(found)) == len(found), f"query {i} returns a row twice"
        for place, ((score, row), (best, best_row)) in enumerate(zip(came, wanted)):
            assert (row == -1) == (best_row == -1), f"query {i} place {place}: row {row} for {best_row}"
            if row == -1:
                assert score == -torch.inf
                continue
            assert abs(score - best) < limit, f"query {i} place {place}: {score} for {best}"
            assert row == best_row or abs(float(s[i, row]) - best) < 2 * limit, f"query {i} place {place}"


@pytest.mark.parametrize("k", [1, 10, 128])
@pytest.mark.parametrize("shape", [(1, 1, 7), (2, 1023, 40), (17, 129, 24)])
def test_equals_a_full_sort(shape: tuple[int, int, int], k: int) -> None:
    q, m, t, _ = make(shape, torch.float32)
    came = op.masked_topk(q, m, t, k)
    assert_best(*came, written_out(q, m, t, None), k, torch.tensor(True), tolerance(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=name)
def test_other_types_and_target_masks(dtype: torch.dtype) -> None:
    q, m, t, scale = make((3, 200, 33), dtype)
    own = torch.rand(t.shape)
    came = op.masked_topk(q, m, t, 5, row_scale=scale, target_masks=own)
    assert_best(*came, written_out(q, m, t, scale, own), 5, torch.tensor(True), tolerance(dtype))


@pytest.mark.parametrize("interpret", ["0", "1"], ids=["reference", "kernel"])
def test_filters(interpret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    b, n = 3, 107
    q, m, t, _ = make((b, n, 16), torch.float32)
    s = written_out(q, m, t, None)
    row_filter = (torch.rand(n) < 0.5).to(torch.uint8) * 3
    per_query = torch.rand(b, n) < 0.1
    bits = torch.zeros(b, 112, dtype=torch.uint8)
    bits[:, :n] = per_query
    packed = (bits.view(b, 14, 8) << torch.arange(8).to(torch.uint8)).sum(2).to(torch.uint8)
    junk = tuple(torch.randint(2, (x,), dtype=torch.int32) for x in (b, b, n, n))
    clean = ~((junk[0][:, None] == junk[2]) & (junk[1][:, None] == junk[3]))
    limit = tolerance(torch.float32)
    assert_best(*op.masked_topk(q, m, t, 20, row_filter=row_filter), s, 20, row_filter[None] != 0, limit)
    assert_best(*op.masked_topk(q, m, t, 20, row_filter=packed), s, 20, per_query, limit)
    assert_best(*op.masked_topk(q, m, t, 20, junk=junk), s, 20, clean, limit)
    assert_best(*op.masked_topk(q, m, t, 20, row_filter=packed, junk=junk), s, 20, per_query & clean, limit)
    nothing = op.masked_topk(q, m, t, 4, row_filter=torch.zeros(n, dtype=torch.uint8))
    assert (nothing[0] == -torch.inf).all() and (nothing[1] == -1).all()


@pytest.mark.parametrize("interpret", ["0", "1"], ids=["reference", "kernel"])
def test_ties_go_to_the_lower_row(interpret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    q, m, t, _ = make((2, 4, 16), torch.float32)
    copies = t[torch.arange(300) % 4].contiguous()
    _, rows = op.masked_topk(q, m, copies, 70)
    best = op.masked_similarity(q, m, t).argmax(1)
    assert rows.tolist() == [[int(first) + 4 * i for i in range(70)] for first in best]


def test_no_buffer_of_b_by_n(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plain = torch.empty

    def recorded(*size, **options):  # type: ignore[no-untyped-def]
        made.append(plain(*size, **options))
        return made[-1]

    monkeypatch.setattr(launch.torch, "empty", recorded)
    q, m, t, _ = make((4, 1023, 16), torch.float32)
    launch.topk(q, m, t, 3)
    assert made
    assert max(x.nbytes for x in made) <= 4 * 1023 * 8 / 32 + 8 * 4 * 16 * 128


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"k": 0}, "1 to 128"),
        ({"k": 129}, "1 to 128"),
        ({"row_filter": torch.ones(5)}, r"contiguous uint8 \(5,\) or \(2, 1\)"),
        (
            {"junk": tuple(torch.ones(x, dtype=torch.int64) for x in (2, 2, 5, 5))},
            r"q_person to be int32 \(2,\) on cpu, got int64",
        ),
    ],
)
def test_an_error_says_what_was_expected(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        op.masked_topk(torch.ones(2, 8), torch.ones(2, 8), torch.ones(5, 8), **{"k": 2, **arguments})
