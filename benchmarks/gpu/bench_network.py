"""The whole network on a GPU through torch: crops per second and batch-1 latency, plain and as a CUDA graph.

Until a TensorRT engine runs on a GPU this is the fastest way to serve there, and later it is TensorRT's rival.
"""

from __future__ import annotations

from typing import Any

import timing
import torch

from dpm_edge.model.network import DPM
from dpm_edge.spec import PRESETS, ModelSpec


def forward_flops(spec: ModelSpec) -> float:
    """Multiply-adds times two of one crop: patch embedding, blocks, mask generator (method sections 1 and 2)."""
    d, n = spec.width, spec.grid[0] * spec.grid[1]
    tokens = n + 1
    block = 2 * tokens * d * d * (4 + 2 * spec.mlp_ratio) + 4 * tokens * tokens * d
    patches = 2 * n * d * 3 * spec.patch**2
    blocks = len(spec.mask_blocks)
    if spec.hmg == "paper":
        head = 2 * 9 * (n * blocks * d * 2 * d + (n // 4) * 2 * d * d + (n // 16) * d * d)
    else:
        half = d // 2
        head = 2 * (n * blocks * d * half + n * half * half + (n // 4) * half * half + (n // 16) * half * d)
    return patches + spec.layers * block + head + 2 * d * d


def build(spec: ModelSpec, dtype: torch.dtype, device: str) -> DPM:
    """A randomly initialised network in eval mode, with a mask generator that is not at its constant start."""
    with torch.random.fork_rng(), torch.no_grad():  # the same weights in every precision; the inputs stay fresh
        torch.manual_seed(0)
        net = DPM(spec).to(device).eval()
        net.mask_generator.linear.weight.normal_(std=0.1)
    return net.to(dtype)


def check(device: str, quick: bool) -> list[dict[str, Any]]:
    """Half-precision features, taken on either side of the neck, and masks, against the same network in float64."""
    rows = []
    names = ("dpm-t",) if quick else ("dpm-b", "dpm-s", "dpm-t")
    for name, neck in ((name, neck) for name in names for neck in ("before", "after")):
        spec = PRESETS[name].replace(neck=neck)
        spec = spec.replace(height=64, width_px=64) if quick else spec
        images = torch.rand(3, 3, spec.preprocessing.height, spec.preprocessing.width, device=device) * 2 - 1
        with torch.no_grad():
            feature64, mask64 = build(spec, torch.float64, device)(images.double())
            for dtype, tolerance in ((torch.float16, 1e-2), (torch.bfloat16, 4e-2)):
                feature, mask = build(spec, dtype, device)(images.to(dtype))
                for what, came, wanted in (("feature", feature, feature64), ("mask", mask, mask64)):
                    error = float((came.double() - wanted).norm() / wanted.norm())
                    rows.append(
                        {
                            "name": f"{name} {what}, neck {neck}",
                            "dtype": str(dtype).removeprefix("torch."),
                            "shape": list(came.shape),
                            "error": error,
                            "tolerance": tolerance,
                            "ok": error < tolerance,
                        }
                    )
    return rows


def timings(device: str, quick: bool) -> list[dict[str, Any]]:
    """Median milliseconds per call; `per_second` is crops."""
    rows = []
    sizes = (1, 2) if quick else (1, 8, 64, 256)
    for name in ("dpm-t",) if quick else ("dpm-b", "dpm-s", "dpm-t"):
        spec = PRESETS[name].replace(height=64, width_px=64) if quick else PRESETS[name]
        dtype = torch.bfloat16 if quick else torch.float16
        net = build(spec, dtype, device)
        ways: dict[str, Any] = {"eager": net}
        if not quick:
            ways["compiled"] = torch.compile(net, dynamic=False)
        for batch in sizes:
            images = torch.rand(batch, 3, spec.preprocessing.height, spec.preprocessing.width, device=device)
            images = (images * 2 - 1).to(dtype)
            for way, function in ways.items():
                if way == "compiled" and (name, batch) != ("dpm-b", 64):
                    continue  # one compilation: it takes most of a minute
                for graph in (False, True) if not quick else (False,):
                    with torch.no_grad():
                        ms = timing.median_ms(lambda f=function, x=images: f(x), cold_l2=False, graph=graph)
                    rows.append(
                        {
                            "name": f"{name} {way}{' graph' if graph else ''}",
                            "dtype": str(dtype).removeprefix("torch."),
                            "shape": [batch],
                            "ms": ms,
                            "per_second": round(batch / ms * 1e3, 1),
                            "flops": forward_flops(spec) * batch,
                        }
                    )
    return rows
