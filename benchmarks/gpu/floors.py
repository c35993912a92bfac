"""Floor times on paper: bytes that must move and operations that must be done, over each device's published rates.

    python benchmarks/gpu/floors.py            the table, as Markdown
    python benchmarks/gpu/floors.py --write    put it into README.md beside this file

No version of a kernel runs much faster than its floor; the larger of the two times says what binds it. Rates are the
vendor's, dense, and leads only: the suite measures its own ceilings on the device it runs on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple


class Device(NamedTuple):
    """Published peak rates."""

    name: str
    bytes_per_s: float
    fp16_flop_per_s: float


class Work(NamedTuple):
    """The fewest bytes and the operations of one call."""

    name: str
    bytes: float
    flops: float


DEVICES = (
    Device("H100 SXM", 3.35e12, 989e12),
    Device("Jetson AGX Orin 64 GB", 204.8e9, 42.5e12),
    Device("Jetson AGX Thor", 273e9, 258e12),
)
"""H100 datasheet; Orin: half of its GPU's 85 dense INT8 TOPS; Thor: an eighth of its 2070 sparse FP4 TFLOPS."""


def masked_distance(batch: int, targets: int = 1_000_000, d: int = 768) -> Work:
    """One read of the fp16 targets, scores out in fp32; two products."""
    moved = 2 * targets * d + 2 * 2 * batch * d + 4 * batch * targets
    return Work(f"masked_distance, B={batch}, N=1M, D={d}, fp16", moved, 4 * batch * targets * d)


def masked_topk(batch: int, k: int = 10, targets: int = 1_000_000, d: int = 768) -> Work:
    """The same with k values and rows out in place of B×N."""
    moved = 2 * targets * d + 2 * 2 * batch * d + 12 * batch * k
    return Work(f"masked_distance top-{k}, B={batch}, N=1M, D={d}, fp16", moved, 4 * batch * targets * d)


def mask_head(batch: int, d: int = 768, n: int = 128) -> Work:
    """Paper head: four token maps and the weights in, masks out; three 3×3 convolutions and a linear."""
    weights = 9 * (4 * d * 2 * d + 2 * d * d + d * d) + d * d
    moved = 2 * (4 * batch * n * d + weights + 3 * batch * d)
    flops = 2 * 9 * batch * (n * 4 * d * 2 * d + n // 4 * 2 * d * d + n // 16 * d * d) + 2 * batch * d * d
    return Work(f"mask_head paper, B={batch}, 16×8 tokens, d={d}, fp16", moved, flops)


def crop(people: int = 32, height: int = 256, width: int = 128) -> Work:
    """Each box of about 300×100 BGR pixels read once, fp16 crops out; about 20 operations an output value."""
    out = people * 3 * height * width
    return Work(
        f"crop_resize_normalize, {people} people of a 1080p frame, fp16", people * 300 * 100 * 3 + 2 * out, 20 * out
    )


WORK = (
    *(masked_distance(b) for b in (1, 16, 256)),
    *(masked_topk(b) for b in (1, 16, 256)),
    mask_head(1),
    mask_head(32),
    crop(),
)


def table() -> str:
    """Markdown: a row per call, a column per device with its floor in milliseconds and what binds it."""
    lines = [
        "| call | MB | GFLOP | " + " | ".join(f"{d.name}, ms" for d in DEVICES) + " |",
        "|" + " --- |" * (3 + len(DEVICES)),
    ]
    for work in WORK:
        cells = []
        for device in DEVICES:
            memory, matrix = work.bytes / device.bytes_per_s * 1e3, work.flops / device.fp16_flop_per_s * 1e3
            cells.append(f"{max(memory, matrix):.3g} ({'memory' if memory >= matrix else 'matrix'})")
        lines.append(f"| {work.name} | {work.bytes / 1e6:.4g} | {work.flops / 1e9:.4g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--write" in sys.argv:
        readme = Path(__file__).with_name("README.md")
        text = readme.read_text(encoding="utf-8")
        before, rest = text.split("<!-- floors -->\n", 1)
        after = rest.split("<!-- /floors -->", 1)[1]
        readme.write_text(f"{before}<!-- floors -->\n{table()}\n<!-- /floors -->{after}", encoding="utf-8")
    else:
        print(table())
