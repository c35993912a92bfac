"""The GPU suite runs at toy size without a GPU, and its criteria fail what is wrong and only that."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dpm_edge.kernels.masked_distance import contract, reference

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu"
sys.path.insert(0, str(GPU))
rounding = importlib.import_module("rounding")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the suite runs at full size, by its own command")
def test_the_whole_suite_runs_at_toy_size(tmp_path):
    pytest.importorskip("triton", reason="the suite checks Triton kernels; triton has no wheel for this platform")
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", str(GPU / "run"), "--out", str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["wrong"] == last["broken_timings"] == 0 and last["checks"] > 100
    report = json.loads((tmp_path / last["results"]).read_text())
    assert (
        set(report["check"]) == set(report["timings"]) == {p.stem.removeprefix("bench_") for p in GPU.glob("bench_*")}
    )
    step = {row["name"]: row for row in report["timings"]["train_step"]}
    assert step["train_step part: whole step"]["waits"] == 0 and step["train_step dpm-t: joint"]["ms"] > 0


def tiny(seed: int, dtype: torch.dtype = torch.float16):
    """One query, one target, seven dimensions, whose similarity has cancelled to next to nothing."""
    draw = torch.Generator().manual_seed(seed)
    q, m, t = torch.randn(1, 7, generator=draw), torch.rand(1, 7, generator=draw), torch.randn(1, 7, generator=draw)
    q[0, 6] -= float((q * m * t).sum() / (m[0, 6] * t[0, 6])) * (1 - 1e-4)
    return q, m, (t / t.norm()).to(dtype)


def rounded(q, m, t, labels=None):
    """What the kernel computes: operands rounded to the targets' type, sums in float64."""
    unit = q.double() / q.double().norm(dim=1, keepdim=True)
    a, mm, tt = ((x).to(t.dtype).double() for x in (unit * m, m.double() ** 2, t.double() ** 2))
    s = (a @ t.double().T) / (mm @ tt.T).sqrt()
    return s if labels is None else reference.with_margin(s, labels, contract.SCALE, contract.MARGIN)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_a_similarity_that_cancels_is_no_error(dtype):
    tolerance = contract.TOLERANCE[rounding.type_name(dtype)]
    over_value = 0.0
    for seed in range(200):
        q, m, t = tiny(seed, dtype)
        wanted = reference.similarity(q.double(), m.double(), t)
        row = rounding.row_of("s", dtype, (1, 1, 7), rounded(q, m, t), wanted, tolerance, rounding.reach(q, m, t))
        assert row["ok"], (seed, row)
        over_value = max(over_value, float(((rounded(q, m, t) - wanted) / wanted).abs()))
    assert over_value > 10 * tolerance  # what dividing by the value would have called an error


def test_reach_is_at_most_one_and_at_least_the_similarity():
    q, m, t = torch.randn(5, 33), torch.rand(5, 33), torch.randn(9, 33)
    near, s = rounding.reach(q, m, t), reference.similarity(q.double(), m.double(), t)
    assert (near <= 1 + 1e-12).all() and (near >= s.abs()).all()
    terms = (q / q.norm(dim=1, keepdim=True))[:, None] * m[:, None] * t
    torch.testing.assert_close(near.float(), terms.abs().sum(2) / (m[:, None] * t).norm(dim=2))


@pytest.mark.parametrize("shape", [(1, 1, 7), (7, 70, 129)])
def test_margin_logits_that_are_wrong_fail(shape):
    """With one target a fault may hide where its logit is near 0: there most draws, elsewhere every draw, shows it."""
    (b, n, d), passed = shape, {}
    for seed in range(30):
        torch.manual_seed(seed)
        q, m = torch.randn(b, d), torch.rand(b, d)
        t = torch.nn.functional.normalize(torch.randn(n, d), dim=1).half()
        s = reference.similarity(q.double(), m.double(), t)
        labels = rounding.labels_for(s)
        if labels is None:
            continue
        ours, near = rounded(q, m, t, labels), rounding.reach(q, m, t)
        margin = 1.03 * contract.MARGIN
        came = {
            "right": ours,
            "no margin": contract.SCALE * rounded(q, m, t),
            "another label": rounded(q, m, t, (labels + 1) % max(n, 2)),
            "scale off by 2 %": 1.02 * ours,
            "margin off by 3 %": reference.with_margin(rounded(q, m, t), labels, contract.SCALE, margin),
        }
        for fault, logits in came.items():
            row = rounding.margin_row(logits, s, near, labels, torch.float16, shape)
            passed.setdefault(fault, []).append(row["ok"])
    assert all(passed.pop("right")) and len(passed["no margin"]) >= 10
    for fault, rows in passed.items():
        assert sum(rows) <= (0 if n > 1 else len(rows) // 3), (fault, rows)


def test_gradients_are_held_to_their_terms_and_a_wrong_one_fails():
    torch.manual_seed(0)
    for shape in ((1, 1, 7), (4, 9, 33)):
        b, n, d = shape
        q, m, t = torch.randn(b, d).double(), torch.rand(b, d).double(), torch.randn(n, d).double()
        labels = rounding.labels_for(reference.similarity(q, m, t))
        if labels is None:
            continue
        inputs = [x.requires_grad_() for x in (q, m, t)]
        grad = torch.randn(b, n).double()
        logits = reference.margin_logits(*inputs, labels, contract.SCALE, contract.MARGIN)
        wanted = torch.autograd.grad(logits, inputs, grad)
        scales = rounding.gradient_scales(*(x.detach() for x in inputs), labels, grad)
        for gradient, of in zip(wanted, scales):
            assert (gradient.abs() <= of * (1 + 1e-9)).all()
            assert rounding.row_of("g", torch.float16, shape, gradient * (1 + 5e-4), gradient, 3e-3, of)["ok"]
            assert not rounding.row_of("g", torch.float16, shape, -gradient, gradient, 3e-3, of)["ok"]
